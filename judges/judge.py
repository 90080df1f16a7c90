"""A judge is a folder: judge.yaml and its prompt or rubric. This module reads one and gives it its fingerprint.

Votes are addressed by the fingerprint, and those of two fingerprints are never pooled: whatever can change an answer
is in it (backend, model, revision, prompt, constitution, answer mode, decoding), and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from judges.backends.base import Subject, Text
from judges.constitution import choose, read_constitution
from judges.modes import MODES, Kind, Mode
from judges.prompts import PromptTemplate
from judges.settings import LOCAL, SETTINGS, CascadeSettings, JudgeSettings, RubricSettings
from store.config import parse, read_yaml
from store.errors import UsageError
from store.hashing import hash_json, hash_path
from store.resources import CONFIGS, is_local, resolve

PROTOCOL = 2
"""Raised when the way prompts are rendered or answers are read changes: it is part of every fingerprint."""

FILE = "judge.yaml"

S = TypeVar("S", bound=JudgeSettings)


@dataclass(frozen=True)
class Judge:
    """A judge as read from its folder; nothing is loaded or called yet.

    `prompt_text` is empty and `template` None for a judge without a prompt; `principles` is empty without a
    constitution; `model` is the local model's folder, or its name, or empty; `rubric` is the program's file; `members`
    are a cascade's judges, the first and the then one. A cascade has no mode of its own: its members are asked.
    """

    folder: Path
    settings: JudgeSettings
    prompt_text: str = ""
    template: PromptTemplate | None = None
    principles: tuple[str, ...] = ()
    model: str = ""
    rubric: Path | None = None
    members: tuple[Judge, ...] = ()

    @property
    def name(self) -> str:
        return self.settings.name

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that can change an answer. A local model counts by its content, another by its name."""
        return hash_json(
            {
                "protocol": PROTOCOL,
                "settings": self.settings.fingerprinted | {"model": self.model_identity},
                "prompt": self.prompt_text,
                "principles": list(self.principles),
                "rubric": _rubric_digest(self.rubric) if self.rubric else None,
                "members": [member.digest for member in self.members],
            }
        )

    @cached_property
    def digest(self) -> str:
        """Hash of all that can change a vote: the fingerprint, and what a pointwise judge's votes are derived with."""
        derivation = self.settings.derivation
        members = [member.digest for member in self.members]
        return hash_json([self.fingerprint, derivation, members]) if derivation or members else self.fingerprint

    def settings_as(self, kind: type[S]) -> S:
        """The settings, for a backend that knows their kind. Raises TypeError for the judge of another backend."""
        if not isinstance(self.settings, kind):
            raise TypeError(f"Judge {self.name} has the backend {self.settings.backend}, not that of {kind.__name__}.")
        return self.settings

    @property
    def asked(self) -> list[Judge]:
        """The judges that are really asked: this one, or of a cascade the members, and theirs."""
        return [judge for member in self.members for judge in member.asked] if self.members else [self]

    @property
    def mode(self) -> Mode:
        return MODES[self.settings.mode]

    def render(self, subject: Subject, about: str, specials: Sequence[str]) -> str:
        """The message that shows `subject`, with untrusted text made harmless; empty for a judge that is a program.

        `about`: id of the pair, rollout or prompt, by which a principle is drawn where the judge samples one.
        `specials`: tokens that text must not spell.
        """
        if self.template is None or isinstance(self.settings, RubricSettings | CascadeSettings):
            return ""
        principles = choose(self.principles, self.settings.principles, about)
        untrusted: dict[str, str | Sequence[str]] = {"prompt": subject.prompt, "reference": subject.reference or ""}
        if self.mode.kind == Kind.PAIR:
            untrusted["first"], untrusted["second"] = subject.responses
        elif self.mode.kind == Kind.SINGLE:
            (untrusted["response"],) = subject.responses
        else:
            untrusted["responses"] = subject.responses
        return self.template.render(untrusted, principles, self.settings.questions, specials, self.settings.keywords)

    @cached_property
    def model_identity(self) -> str:
        """Content hash of a local model, the name of another."""
        local = self.settings.backend in LOCAL and Path(self.model).is_dir()
        return hash_path(Path(self.model)) if local else self.model


def load_judge(name_or_path: str | Path) -> Judge:
    """Read the judge of a shipped name or a folder. Raises UsageError, in one sentence, for anything wrong in it."""
    return _load(_folder(str(name_or_path)), ())


def _load(folder: Path, within: tuple[Path, ...]) -> Judge:
    """`within`: the folders of the cascades that this judge is a member of."""
    source = folder / FILE
    value = read_yaml(source)
    settings = parse(_model_of(value, source), value, source=str(source))
    if isinstance(settings, CascadeSettings):
        return Judge(folder, settings, members=_members(folder, settings, source, (*within, folder)))
    if isinstance(settings, RubricSettings):
        return Judge(folder, settings, rubric=_inside(folder, settings.rubric, "rubric", source))
    path = _inside(folder, settings.prompt, "prompt", source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The prompt {path} cannot be read ({error}): restore it.") from error
    mode = MODES[settings.mode]
    try:
        mode.check(settings)
    except ValueError as error:
        raise UsageError(f"{source}: {error}.") from error
    template = PromptTemplate(text, str(path), mode.variables)
    principles: tuple[str, ...] = ()
    if settings.constitution is not None:
        principles = read_constitution(_inside(folder, settings.constitution, "constitution", source))
        if not template.shows("principles"):
            raise UsageError(
                f"{source} names a constitution, but {path} never shows it: put {{{{ principles }}}} into it."
            )
    model = settings.model
    if settings.backend in LOCAL:
        model = _model_folder(folder, model, source)
    judge = Judge(folder, settings, text, template, principles, model)
    _refuse_own_answer(judge)
    return judge


def known_judges() -> list[str]:
    """The names of the shipped judges."""
    return sorted(path.parent.name for path in (CONFIGS / "judges").glob(f"*/{FILE}"))


def _folder(name: str) -> Path:
    # A bare name means the shipped judge, whatever lies in the working directory.
    shipped = CONFIGS / "judges" / name
    if name and Path(name).name == name and (shipped / FILE).is_file():
        return shipped
    folder = Path(name).expanduser()
    folder = folder.parent if folder.name == FILE else folder
    if name and (folder / FILE).is_file():
        return folder.resolve()
    if name and folder.is_dir() and Path(name).name != name:
        raise UsageError(f"The folder {folder} is no judge: it has no {FILE}; add one.")
    raise UsageError(
        f"There is no judge {name!r}: known are {', '.join(known_judges()) or 'none'}; or give the folder of a {FILE}."
    )


def _members(folder: Path, settings: CascadeSettings, source: Path, within: tuple[Path, ...]) -> tuple[Judge, ...]:
    members = []
    for key, name in (("first", settings.first), ("then", settings.then)):
        shipped = Path(name).name == name and name in known_judges()
        try:
            place = _folder(name if shipped else str(folder / Path(name).expanduser()))
        except UsageError as error:
            raise UsageError(
                f"{source}: {key} = {name!r} is neither a shipped judge nor the folder of one, from here: known are "
                f"{', '.join(known_judges())}; correct it."
            ) from error
        if place in within:
            raise UsageError(f"{source}: {key} = {name!r} leads back to this cascade: name another judge.")
        members.append(_load(place, within))
    first, then = ({judge.fingerprint: judge.name for judge in member.asked} for member in members)
    if both := sorted(first.keys() & then.keys()):
        raise UsageError(f"{source}: both first and then ask the judge {first[both[0]]}: name two different judges.")
    return tuple(members)


def _model_of(value: dict[str, Any], source: Path) -> type[JudgeSettings]:
    backend = value.get("backend")
    if not isinstance(backend, str) or backend not in SETTINGS:
        raise UsageError(f"{source}: backend = {backend!r} is none of {', '.join(SETTINGS)}: choose one.")
    return SETTINGS[backend]


def _inside(folder: Path, name: str, what: str, source: Path) -> Path:
    try:
        path = resolve(name, base=folder)
    except UsageError as error:
        raise UsageError(
            f"{source}: {what} = {name!r} names a file that does not exist: add it or correct the name."
        ) from error
    if not path.is_file():
        raise UsageError(f"{source}: {what} = {name!r} is no file: correct the name.")
    return path


def _model_folder(folder: Path, name: str, source: Path) -> str:
    """The path of a local model; a name on a hub as it is."""
    if not is_local(name) and not (folder / name).is_dir():
        return name
    try:
        path = resolve(name, base=folder)
    except UsageError as error:
        raise UsageError(f"{source}: model = {name!r} names a folder that does not exist: correct the path.") from error
    if not (path / "config.json").is_file():
        raise UsageError(
            f"{source}: model = {name!r} is no model folder, it has no config.json: give a Hugging Face model."
        )
    return str(path.resolve())


def _refuse_own_answer(judge: Judge) -> None:
    """A judge that echoes its prompt must not be read as one that answered."""
    slots = 2 if judge.mode.kind == Kind.PAIR else 1 if judge.mode.kind == Kind.SINGLE else 3
    subject = Subject("prompt", tuple(f"response {number + 1}" for number in range(slots)))
    want = judge.mode.want(judge.settings, slots)
    if isinstance(want, Text) and judge.template and want.readable(judge.render(subject, "", ())):
        raise UsageError(
            f"The prompt {judge.template.source} itself contains a well-formed answer, which an echo would repeat: "
            f"write the form as a placeholder such as 'VERDICT: <answer>'."
        )


def _rubric_digest(path: Path) -> str:
    from judges.backends.rubric import Rubric

    return Rubric.load(path).digest
