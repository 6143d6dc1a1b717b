"""``run.json`` as it is read: the fields that something hangs on, each of its type; the rest is kept as it stands."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from evalkit.errors import BadInput, RunFolderError
from evalkit.escaping import require_name
from evalkit.lengths import parse_length
from evalkit.reading import parse_json, read_as, require_readable
from evalkit.records.fingerprint import fingerprint_sha

RUN = "run.json"
SCHEMA = 2
READ_ONLY_SCHEMAS = (1,)
"""Of folders that a report reads and no run continues: their fingerprints lack what the engine was found to be."""


def _length(text: str) -> str:
    try:
        parse_length(text)
    except BadInput as error:
        raise ValueError(str(error).rstrip(".")) from error
    return text


def _moment(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("a moment is written with its distance from UTC")
    return text


_Moment = Annotated[str, AfterValidator(_moment)]
_Length = Annotated[str, AfterValidator(_length)]
_Count = Annotated[int, Field(ge=0, le=2**40)]
_Number = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Scope(_Part):
    lengths: list[_Length] | None = None
    subsets: list[str] | None = None
    samples: _Count | None = None
    repeat: Annotated[int, Field(ge=1, le=2**40)] = 1
    cells: dict[str, _Count] | None = None

    @model_validator(mode="after")
    def _cells_name_a_length(self) -> Self:
        for cell in self.cells or ():
            _length(cell.rpartition("/")[2])
        return self


class _Config(_Part):
    task: str | None = None
    shard: Annotated[str, Field(pattern=r"^[1-9]\d{0,8}/[1-9]\d{0,8}$")] | None = None
    control: str | None = None
    published: bool | None = None
    setting: str | None = None
    backend: str | None = None
    source: str | None = None
    depths: list[float] | None = None
    trained_length: Annotated[int, Field(ge=1, le=2**40)] | None = None
    training: dict[str, Any] | None = None
    files: dict[str, str] | None = None
    recipes: dict[str, dict[str, Any]] | None = None
    scope: _Scope = _Scope()

    @model_validator(mode="after")
    def _a_shard_says_of_what(self) -> Self:
        scope = self.scope
        if self.shard is not None and (scope.lengths is None or scope.subsets is None or scope.samples is None):
            raise ValueError("a shard has lengths, subsets and samples in its scope")
        return self


class _Fingerprint(_Part):
    sha256: str
    parts: dict[str, Any]


class _Answering(_Part):
    since: _Moment
    after: _Count
    writer: str


class _PaceOfLength(_Part):
    samples: _Count
    prompt_tokens: _Count
    cached_tokens: _Count = 0
    seconds: _Number


class _Pace(_Part):
    loading_seconds: _Number
    by_length: dict[_Length, _PaceOfLength]


class _Invocation(_Part):
    command: str | None = None
    started: _Moment = ""  # imports do not say
    versions: dict[str, str] = {}
    engine: dict[str, Any] = {}
    answering: _Answering | None = None
    pace: _Pace = _Pace(loading_seconds=0, by_length={})

    @model_validator(mode="after")
    def _a_pace_says_when(self) -> Self:
        if self.pace.by_length and not self.started:
            raise ValueError("an invocation with a pace says when it started")
        return self


class _RunFile(_Part):
    arm: Annotated[str, Field(min_length=1)]
    config: _Config
    fingerprint: _Fingerprint
    provenance: list[_Invocation]


def read_run(folder: Path) -> dict[str, Any]:
    """Return what the ``run.json`` of a run folder holds, checked; fields that are not known stay in it.

    Raises:
        RunFolderError: there is none, it is of another schema, its fingerprint does not fit its hash, or a field is
            missing or of another type; names folder and field.
    """
    file = folder / RUN
    try:
        require_readable(file)
        run = parse_json(file.read_bytes(), str(file))
    except (FileNotFoundError, NotADirectoryError):
        raise RunFolderError(f"{folder} is not a run folder: it has no {RUN}.") from None
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read ({error.strerror}).") from error
    except BadInput as error:
        raise _damaged(file, str(error).removeprefix(str(file)).strip().rstrip(".")) from error
    schema = run.get("schema") if isinstance(run, dict) else None
    if not isinstance(run, dict) or type(schema) is not int:
        raise _damaged(file, "it is no object with a schema")
    if schema not in (SCHEMA, *READ_ONLY_SCHEMAS):
        raise RunFolderError(
            f"Run folder {folder} has schema version {schema}, and this evalkit writes version {SCHEMA}; "
            f"use the evalkit that made it, or another folder."
        )
    try:
        known = read_as(_RunFile, run)
        require_name(run["arm"], "arm")
        whole = known.fingerprint.sha256 == fingerprint_sha(run["fingerprint"]["parts"])
    except (BadInput, ValueError) as error:
        raise _damaged(file, str(error).rstrip(".")) from error
    if not whole:
        raise _damaged(file, "its fingerprint does not fit its hash")
    return run


def _damaged(file: Path, why: str) -> RunFolderError:
    return RunFolderError(
        f"{file} is damaged or was edited by hand ({why}); restore it from a backup, or use another folder."
    )
