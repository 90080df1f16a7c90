"""Build hook: the shipped configs and datasets travel in the wheel inside the ground floor's package.

Not as folders of their own: `datasets` in site-packages would lie where Hugging Face's library does. An editable
install needs no copies, it finds both in the checkout (store/resources.py).
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedData(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"] |= {folder: f"store/shipped/{folder}" for folder in ("configs", "datasets")}
