"""Which tensor of a model belongs to which part: stem, blocks, head, shared."""

from __future__ import annotations

from dataclasses import dataclass, field

from flwr_splitkd.errors import CutError

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """The parts of one model, by the names in its state dict.

    A model is a *stem* (embeddings), *blocks* that run one after another, and a *head* (norm, projection,
    pooler, classifier). A cut ``c`` gives the device the stem and blocks ``0..c-1``, the edge the rest.

    Parameters
    ----------
    blocks
        Dotted path of the container of the blocks, e.g. ``"model.layers"``; ``""`` when the model itself is
        the container or the blocks have several parents.
    block_names
        Dotted path of every block, in the order in which they run.
    stem
        State-dict names outside the blocks that only the device half needs.
    head
        State-dict names outside the blocks that only the edge half needs; names that neither half uses
        (a pooler that is not called) and second names of shared tensors are here too.
    shared
        State-dict names outside the blocks that both halves need, such as a tied embedding.
    arity
        What a block returns: 0 is a bare tensor, n > 0 is a tuple of n items with the hidden states first.
    data_input
        Name of the forward argument that carries the private data; it never leaves the device.
    """

    blocks: str
    block_names: tuple[str, ...]
    stem: tuple[str, ...] = ()
    head: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    arity: int = 0
    data_input: str = "input_ids"
    _unit_by_name: dict[str, str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the names outside the blocks, and refuse a name with two owners."""
        units: dict[str, str] = {}
        for unit, names in (("stem", self.stem), ("head", self.head), ("shared", self.shared)):
            for name in names:
                if name in units:
                    raise CutError(
                        f"`{name}` is listed under both {units[name]!r} and {unit!r}; expected one owner. "
                        "List a tensor that both halves need under `shared` only."
                    )
                units[name] = unit
        object.__setattr__(self, "_unit_by_name", units)

    @property
    def num_blocks(self) -> int:
        """Number of blocks, L; cuts go from 1 to L-1."""
        return len(self.block_names)

    def block_of(self, name: str) -> int | None:
        """Index of the block that holds the tensor `name`, or None when it is outside the blocks."""
        for index, block in enumerate(self.block_names):
            if name == block or name.startswith(block + "."):
                return index
        return None

    def unit_of(self, name: str) -> str:
        """Return the unit that the tensor `name` is versioned and handed over with.

        Returns
        -------
        str
            ``"stem"``, ``"blocks.3"``, ``"head"`` or ``"shared"``.

        Raises
        ------
        CutError
            `name` is no tensor of this model.
        """
        unit = self._unit_by_name.get(name)
        if unit is not None:
            return unit
        index = self.block_of(name)
        if index is None:
            raise CutError(
                f"`{name}` is not in this layout; expected a state-dict name of the model it was found on. "
                "Check that both sides run the same architecture, or call find_layout again."
            )
        return f"blocks.{index}"

    def units(self, cut: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Units that the device holds and units that the edge works on at `cut`; ``"shared"`` is in both."""
        self.check_cut(cut)
        shared = ("shared",) if self.shared else ()
        device = ("stem", *shared, *(f"blocks.{i}" for i in range(cut)))
        edge = (*shared, *(f"blocks.{i}" for i in range(cut, self.num_blocks)), "head")
        return device, edge

    def check_cut(self, cut: int, lowest: int = 1) -> None:
        """Refuse a cut that leaves either side without a block.

        Raises
        ------
        CutError
            `cut` is no integer within `lowest` and L-1.
        """
        if isinstance(cut, bool) or not isinstance(cut, int) or not lowest <= cut <= self.num_blocks - 1:
            remedy = (
                f"Lower `cut`, or use a model with more than {cut} layers."
                if isinstance(cut, int) and cut >= self.num_blocks
                else f"Raise `cut` to {lowest} or more."
            )
            raise CutError(
                f"`cut` is {cut!r}; expected {lowest}..{self.num_blocks - 1} for a {self.num_blocks}-layer "
                f"model. {remedy}"
            )
