"""`rlaif doctor`: what is installed, what is missing and how to get it, which devices and servers there are."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import click
import httpx
import psutil

from flows.prefect_checks import check_scheduler, check_server
from judges.config import known_judges, load_judge
from judges.settings import OpenAISettings
from store.errors import RlaifError
from store.resources import CONFIGS, DATASETS

CORE = ("torch", "transformers", "accelerate", "peft", "prefect", "pandas", "pyarrow", "pydantic", "aiohttp")
EXTRAS = {"vllm": ("vllm", "serving judges with vLLM on this machine")}
"""Extra -> the module that tells whether it is installed, and what it is for."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `level`: ok, note (optional part missing), warning (open or fragile) or problem."""

    subject: str
    level: str
    text: str


def packages() -> list[Finding]:
    found = []
    for name in CORE:
        try:
            found.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "problem", "missing: pip install rlaif"))
    for extra, (name, purpose) in EXTRAS.items():
        if importlib.util.find_spec(name):
            found.append(Finding(name, "ok", _version(name)))
        else:
            found.append(Finding(name, "note", f"not installed (only for {purpose}): pip install 'rlaif[{extra}]'"))
    return found


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "installed"


def devices() -> list[Finding]:
    memory = psutil.virtual_memory().total / 2**30
    cpu = f"{os.cpu_count()} cores ({platform.processor() or platform.machine()}), {memory:.1f} GiB of memory"
    found = [Finding("cpu", "ok", cpu)]
    if importlib.util.find_spec("torch") is None:
        return found
    import torch

    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        text = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
        found.append(Finding(f"cuda:{index}", "ok", text))
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        found.append(Finding("gpu", "ok" if mps else "note", "Apple mps" if mps else "none: stages run on the CPU"))
    return found


def data() -> list[Finding]:
    found = []
    for name, path in (("configs", CONFIGS / "demo.yaml"), ("embedded world", DATASETS / "tiny" / "prompts.parquet")):
        level, text = ("ok", str(path)) if path.is_file() else ("problem", f"{path} is missing: install rlaif again")
        found.append(Finding(name, level, text))
    return found


def servers() -> list[Finding]:
    """The Prefect API, and the server of each shipped judge that has one: a judge whose server is off is a note."""
    found = []
    scheduler = check_scheduler(_version("SQLAlchemy"))
    found.append(Finding("prefect scheduler", scheduler.level, scheduler.text))
    url = os.environ.get("PREFECT_API_URL")
    if url:
        found += [Finding("prefect server", check.level, check.text) for check in check_server(url)]
    else:
        found.append(Finding("prefect", "ok", "PREFECT_API_URL is not set: each run starts an API of its own"))
    for name in known_judges():
        subject = f"judge {name}"
        try:
            settings = load_judge(name).settings
        except RlaifError as error:
            found.append(Finding(subject, "problem", str(error)))
            continue
        if isinstance(settings, OpenAISettings):
            for address in settings.addresses:
                finding = _answers(subject, f"{address.rstrip('/')}/models")
                found.append(Finding(subject, "note" if finding.level == "problem" else finding.level, finding.text))
            if settings.api_key_env and settings.api_key_env not in os.environ:
                found.append(Finding(subject, "note", f"its key is not set: export {settings.api_key_env}=..."))
    return found


def _answers(subject: str, url: str) -> Finding:
    try:
        code = httpx.get(url, timeout=3).status_code
    except httpx.HTTPError as error:
        return Finding(subject, "problem", f"{url} does not answer ({type(error).__name__})")
    return Finding(subject, "ok" if code < 500 else "problem", f"{url} answers with {code}")


def disk(folder: Path) -> list[Finding]:
    free = shutil.disk_usage(folder).free / 2**30
    level = "ok" if free > 2 else "problem"
    remedy = "" if free > 2 else ": a round of the demo needs about 1 GiB, free some"
    return [Finding("disk", level, f"{free:.1f} GiB free in {folder}{remedy}")]


@click.command()
def doctor() -> None:
    """Show what is installed, what is missing, which devices there are, and which servers answer."""
    python = Finding("python", "ok", platform.python_version())
    findings = [python, *packages(), *devices(), *data(), *disk(Path.cwd()), *servers()]
    colours = {"ok": "green", "note": "yellow", "warning": "yellow", "problem": "red"}
    for finding in findings:
        click.echo(
            f"{click.style(f'{finding.level:<8}', fg=colours[finding.level])} {finding.subject:<24} {finding.text}"
        )
    if any(finding.level == "problem" for finding in findings):
        raise SystemExit(1)
