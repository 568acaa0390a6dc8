"""Sets of options, and the stages of blocks while a model is traced (python/_options_impl.py)."""

from __future__ import annotations

import abc
import copy
from typing import Any, Callable, Dict, Optional

from vit_ipu.simulator.logs import logger

__all__ = ["IStageManager", "OptionsDict"]


class OptionsDict:
    """A set of options: accepts only known names and values of the default's type, and no changes once frozen."""

    def __init__(self, **default_values: Any) -> None:
        self._is_frozen = False
        # Must be set last: no new private attribute can be created once `_values` exists.
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        self.checkIsFrozen()
        for option, value in kwargs.items():
            assert self.exists(option), f"Invalid option {option}, valid options are {self._values.keys()}"
            expected = type(self._values[option])
            assert isinstance(value, expected), (
                f"Unexpected type {type(value)} for option {option}. Expected {expected}"
            )
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if self.exists(option):
                self.set(**{option: value})
            else:
                self._values[option] = value

    def exists(self, option: str) -> bool:
        return option in self._values

    def deleteIfExists(self, option: str) -> None:
        self._values.pop(option, None)

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        if self.__dict__.get("_is_frozen", False) and option != "_is_frozen":
            raise AttributeError("Can't modify frozen Options")

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        assert not set(self._values) & set(other), "Can't merge dictionaries, they have some keys in common"
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        return self.update({})

    def _freeze(self, frozen: bool = True) -> None:
        """Freezes or unfreezes these options and the groups of options among their attributes."""
        self.__dict__["_is_frozen"] = frozen
        for part in self.__dict__.values():
            if "_is_frozen" in getattr(part, "__dict__", {}):
                part.__dict__["_is_frozen"] = frozen

    def _unfreeze(self) -> None:
        self._freeze(False)

    def __call__(self, option: str) -> Any:
        return getattr(self, option)

    def __getattr__(self, option: str) -> Any:
        values = self.__dict__.get("_values", {})
        if option.startswith("_") or option not in values:
            raise AttributeError(f"Invalid attribute {option}.")
        return values[option]

    def __setattr__(self, option: str, value: Any) -> None:
        self.checkIsFrozen(option)
        if not option.startswith("_"):
            self.set(**{option: value})
        elif "_values" in self.__dict__ and option not in self.__dict__ and option != "__class__":
            raise AttributeError(f"Invalid private attribute {option}. Valid attributes: {list(self.__dict__)}")
        else:
            super().__setattr__(option, value)

    def __deepcopy__(self, memory: Dict[int, Any]) -> OptionsDict:
        clone = type(self).__new__(type(self))
        memory[id(self)] = clone
        for key, value in self.__dict__.items():
            clone.__dict__[key] = False if key == "_is_frozen" else copy.deepcopy(value, memory)
        return clone

    def __getstate__(self) -> Dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self._values.items())
        return f"{type(self).__name__}({options})"


class IStageManager(abc.ABC):
    """Assigns a stage and an IPU to each block that begins; passes both to `on_begin` while a model is traced."""

    def __init__(self) -> None:
        self._next_auto_id = 0
        self._current_ipu: Optional[int] = None
        self.on_begin: Optional[Callable[[int, int], None]] = None  # options must be picklable

    @abc.abstractmethod
    def getStage(self, block_id: str) -> Any:
        """Returns the stage of a block."""

    def beginStage(self, user_id: Optional[str], ipu_id_from_block: Optional[int]) -> None:
        """Begins a block on its stage's IPU, else on the block's own IPU, else on the IPU with the stage's number."""
        block = user_id or self.nextAutoId()
        self._current_ipu = ipu_id_from_block
        stage = self.getStage(block)
        ipu = ipu_id_from_block if stage._ipu is None else stage._ipu
        if ipu is None:
            ipu = stage._stage_id
        logger.debug("Starting block id=%s stage=%d phase=%d ipu=%d", block, stage._stage_id, stage._phase_id, ipu)
        if self.on_begin is not None:
            self.on_begin(stage._stage_id, ipu)

    def nextAutoId(self) -> str:
        """Returns the ID for the next block without an ID."""
        self._next_auto_id += 1
        return str(self._next_auto_id - 1)

    def resetAutoId(self) -> None:
        """Numbers blocks without an ID from 0 again."""
        self._next_auto_id = 0

    def clearDebug(self) -> None:  # noqa: B027
        """Does nothing: a model is traced once, and each block is logged as soon as it begins."""

    def printDebug(self) -> None:  # noqa: B027
        """Does nothing, like `clearDebug`."""
