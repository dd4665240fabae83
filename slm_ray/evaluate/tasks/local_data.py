"""``--task-data FOLDER``: which of its files hold a task's documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from slm_ray.config.errors import UserError, nearest
from slm_ray.config.yaml_files import plain_yaml
from slm_ray.evaluate.tasks.catalogue import Definition, Leaf, catalogue
from slm_ray.evaluate.tasks.local_rows import SUFFIXES, LocalSplit, read_rows

MAP_FILE = "tasks.yaml"
DOCUMENTS, SELECT, RENAME = "documents", "select", "rename"
_SHOWN = 8


@dataclass(frozen=True)
class Splits:
    """Which splits of its dataset a task reads.

    Attributes:
        evaluated: That of the documents it is evaluated on.
        examples: That of the examples before a question; None where none are needed, or the task brings its own.
    """

    evaluated: str
    examples: str | None

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], shots: int) -> Splits:
        """What lm-eval reads (``Task.eval_docs`` and ``ConfigurableTask.fewshot_docs``).

        Args:
            name: The task.
            config: Its config.
            shots: Examples before each question.

        Raises:
            UserError: It has no documents to evaluate on.
        """
        evaluated = config.get("test_split") or config.get("validation_split")
        if not evaluated:
            raise UserError(f"task '{name}' has neither test nor validation documents, so lm-eval cannot evaluate it")
        few_shot = config.get("fewshot_config") or {}
        examples = few_shot.get("split") or config.get("fewshot_split")
        if not shots or (examples is None and few_shot.get("samples") is not None):
            return cls(evaluated, None)
        return cls(evaluated, examples or config.get("training_split") or config.get("validation_split") or evaluated)


class TaskData:
    """A folder of task data."""

    def __init__(self, folder: Path) -> None:
        """Read its map, where it has one.

        Args:
            folder: The folder.

        Raises:
            UserError: Its map is not well-formed, or names unknown tasks.
        """
        self.folder = folder.expanduser().resolve()
        self._map = self._read_map()
        self._one_dataset: dict[str, bool] = {}

    def _read_map(self) -> Mapping[str, Mapping[str, Any]]:
        path = self.folder / MAP_FILE
        if not path.is_file():
            return {}
        try:
            value = plain_yaml(path.read_text(encoding="utf-8")) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"--task-data: {path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(value, dict):
            raise UserError(f"--task-data: {path} must map tasks to files, e.g. `arc_easy: {{test: arc.jsonl}}`")
        entries = {}
        for name, entry in value.items():
            if name not in catalogue():
                raise UserError(
                    f"--task-data: {path} names '{name}', which lm-eval has no task or group of: check its spelling"
                )
            entries[str(name)] = self._entry(str(name), {DOCUMENTS: entry} if isinstance(entry, str) else entry)
        return entries

    def _entry(self, name: str, entry: Any) -> Mapping[str, Any]:
        """A task's entry of the map, its keys and the kinds of its values looked at."""
        where = f"'{name}' in {self.folder / MAP_FILE}"
        if not isinstance(entry, dict):
            raise UserError(f"--task-data: {where} must be a file, or map splits to files")
        for key, value in entry.items():
            if key == RENAME and not isinstance(value, dict):
                raise UserError(f"--task-data: '{RENAME}' of {where} must map a field to its new name")
            if key not in (SELECT, RENAME) and Path(str(value)).suffix.lower() not in SUFFIXES:
                raise UserError(
                    f"--task-data: {where} maps '{key}' to '{value}': give {SELECT}, {RENAME}, or a split with "
                    f"its file ({', '.join(SUFFIXES)})"
                )
        return entry

    def find(self, leaf: Leaf, shots: int) -> tuple[LocalSplit, ...]:
        """The files of a task.

        Args:
            leaf: The task.
            shots: Examples before each question.

        Raises:
            UserError: A file is missing, there are two for one split, or it cannot be told which rows are the task's.
        """
        if leaf.python or leaf.file is None:
            raise UserError(f"--task-data: task '{leaf.name}' is a program that fetches its data itself: leave it out")
        config = leaf.config
        splits = Splits.of(leaf.name, config, shots)
        owners = (leaf.name, *leaf.owners)
        self._check_keys(leaf.name, config)
        found = [self._split(owners, splits.evaluated, config, evaluated=True)]
        if found[0] is None:
            raise self._missing(leaf.name, owners, splits.evaluated)
        if splits.examples not in (None, splits.evaluated):
            found.append(self._split(owners, str(splits.examples), config, evaluated=False))
            if found[1] is None:
                raise self._missing_examples(leaf.name, owners, str(splits.examples))
        return tuple(one for one in found if one)

    def _check_keys(self, task: str, config: Mapping[str, Any]) -> None:
        """A split that the task does not have is a slip of the pen."""
        names = {config.get(key) for key in ("training_split", "validation_split", "test_split", "fewshot_split")}
        valid = {str(name) for name in names if name} | {DOCUMENTS, SELECT, RENAME}
        for key in self._map.get(task, {}):
            if key not in valid:
                raise UserError(
                    f"--task-data: '{task}' in {self.folder / MAP_FILE} has '{key}': {nearest(str(key), valid)}"
                )

    def _split(
        self, owners: Sequence[str], split: str, config: Mapping[str, Any], *, evaluated: bool
    ) -> LocalSplit | None:
        """The nearest owner's file of a split, with the rows that are the task's."""
        for owner in owners:
            entry = self._map.get(owner, {})
            path = self._mapped(owner, entry, split, evaluated=evaluated) or self._placed(
                owner, split, evaluated=evaluated
            )
            if path is None:
                continue
            shown = path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else str(path)
            rename = {str(old): str(new) for old, new in (entry.get(RENAME) or {}).items()}
            whole = SELECT not in entry and (owner == owners[0] or self._is_one_dataset(owner))
            select = None if whole else self._select(owners[0], owner, path, shown, config)
            return LocalSplit(split, path, shown, select, rename)
        return None

    def _mapped(self, owner: str, entry: Mapping[str, Any], split: str, *, evaluated: bool) -> Path | None:
        named = [entry[key] for key in ((split, DOCUMENTS) if evaluated else (split,)) if key in entry]
        if not named:
            return None
        path = self.folder / str(named[0])
        if len(named) > 1:
            raise UserError(
                f"--task-data: '{owner}' in {self.folder / MAP_FILE} has both '{split}' and '{DOCUMENTS}': keep one"
            )
        if not path.is_file():
            raise UserError(f"--task-data: '{owner}' in {self.folder / MAP_FILE} names {named[0]}, which is not there")
        return path.resolve()

    def _placed(self, owner: str, split: str, *, evaluated: bool) -> Path | None:
        places = [self.folder / owner / split] + ([self.folder / owner] if evaluated else [])
        found = [
            Path(f"{place}{suffix}") for place in places for suffix in SUFFIXES if Path(f"{place}{suffix}").is_file()
        ]
        if len(found) > 1:
            names = " and ".join(path.relative_to(self.folder).as_posix() for path in found)
            raise UserError(
                f"--task-data: {names} could both be the '{split}' documents of '{owner}': keep one of them"
            )
        return found[0] if found else None

    def _is_one_dataset(self, group: str) -> bool:
        """Whether all tasks of a group read the same documents, and choose among them themselves."""
        if group not in self._one_dataset:
            configs = [leaf.config for leaf in Definition(group).leaves()] if group in catalogue() else []
            read = {(str(config.get("dataset_path")), str(config.get("dataset_name"))) for config in configs}
            self._one_dataset[group] = len(read) == 1
        return self._one_dataset[group]

    def _select(self, task: str, owner: str, path: Path, shown: str, config: Mapping[str, Any]) -> tuple[str, str]:
        """The column of a shared file that says which rows are a task's, and what it says there.

        That is the name of the task's dataset at Hugging Face (MMLU's subjects, BLiMP's paradigms), or the task's own.
        """
        entry, rows = self._map.get(owner, {}), read_rows(path)
        names = [str(entry[SELECT])] if SELECT in entry else list(rows[0] if rows else ())
        wanted = [str(name) for name in (config.get("dataset_name"), task) if name is not None]
        for value in wanted:
            columns = [name for name in names if any(row.get(name) == value for row in rows)]
            if len(columns) == 1:
                return columns[0], value
            if columns:
                raise UserError(
                    f"--task-data: {shown} has '{value}' in columns {', '.join(columns)}: choose with `{SELECT}:` in "
                    f"{MAP_FILE}"
                )
        where = f"column '{entry[SELECT]}'" if SELECT in entry else "any column"
        raise UserError(
            f"--task-data: {shown} is for all of '{owner}' and has no rows of '{task}', for {' and '.join(wanted)} "
            f"is not in {where}: say which column names the tasks with `{SELECT}:` in {MAP_FILE}, or give the task a "
            "file of its own"
        )

    def _missing(self, task: str, owners: Sequence[str], split: str) -> UserError:
        places = f"{task}.jsonl or {task}/{split}.jsonl"
        shared = f", or a file for its whole group ({', '.join(owners[1:3])})" if len(owners) > 1 else ""
        return UserError(
            f"--task-data {self.folder} has no data of task '{task}': expected its '{split}' documents in {places}"
            f"{shared}, or an entry in {MAP_FILE} ({', '.join(SUFFIXES)} are read); found {self._found()}"
        )

    def _missing_examples(self, task: str, owners: Sequence[str], split: str) -> UserError:
        places = " or ".join(f"{owner}/{split}.jsonl" for owner in owners[:3])
        return UserError(
            f"--task-data {self.folder}: task '{task}' takes its examples from its '{split}' documents, which are "
            f"missing: put them into {places}, or give --shots 0; found {self._found()}"
        )

    def _found(self) -> str:
        files = sorted(
            path.relative_to(self.folder).as_posix()
            for pattern in ("*", "*/*") for path in self.folder.glob(pattern) if path.suffix.lower() in SUFFIXES
        )  # fmt: skip
        more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
        return (", ".join(files[:_SHOWN]) + more) if files else "no such files"
