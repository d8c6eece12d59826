"""Labels of several tasks at once: a query for each, or one for all (section 4.1, multitask queries).

Shape suffixes: T tasks; others as in `perceivers.model.adapter`
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from perceivers.errors import PerceiversError
from perceivers.model.adapter import Encoded, OutputAdapter
from perceivers.model.linear import Linear, trunc_normal_parameter


class TaskHeads(nn.Module):
    """An MLP of two layers with a tanh between them for each task (section 4.1).

    Args:
        tasks: number of classes of each task, by name; 1 for a number.
        channels: E of what is read, and of the hidden layer.
        names: what the classes of each task are called, by task; optional, kept with the model.

    Raises:
        PerceiversError: there is no task, or names are not those of the classes.
    """

    def __init__(
        self, tasks: Mapping[str, int], channels: int, names: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        super().__init__()
        if not tasks:
            raise PerceiversError("tasks is empty: name at least one, with its number of classes.")
        for task, classes in (names or {}).items():
            if len(classes) != tasks.get(task):
                raise PerceiversError(
                    f"{len(classes)} names of classes were given for the task {task!r}, "
                    f"which has {tasks.get(task, 'no such place in tasks')}: give one for each."
                )
        self.tasks, self.channels = list(tasks), channels
        self.classes = dict(tasks)
        self.names = {task: list(classes) for task, classes in (names or {}).items()}
        self.heads = nn.ModuleList(  # a list, since torch lets no module be called "CoLA.x" or "values"
            nn.Sequential(Linear(channels, channels), nn.Tanh(), Linear(channels, classes))
            for classes in tasks.values()
        )

    def index_names(self) -> dict[str, tuple[int, list[tuple[str, str | int]]]]:
        """Returns the task and index, or the class, of each row of the weights of all layers."""
        rows: dict[str, tuple[int, list[tuple[str, str | int]]]] = {}
        for index, (task, classes) in enumerate(self.classes.items()):
            hidden: list[tuple[str, str | int]] = [(task, row) for row in range(self.channels)]
            names: list[tuple[str, str | int]] = [(task, name) for name in self.names.get(task, range(classes))]
            for leaf in ("weight", "bias"):
                rows |= {f"heads.{index}.0.{leaf}": (0, hidden), f"heads.{index}.2.{leaf}": (0, names)}
        return rows

    def forward(self, y_BTE: Tensor, indices: Tensor | None = None) -> dict[str, Tensor]:
        """Decoded vectors of all tasks, or those at `indices` [T] -> by task, logits [B, classes] or numbers [B, 1]."""
        asked = range(len(self.tasks)) if indices is None else indices.tolist()
        return {self.tasks[task]: self.heads[task](y_BTE[:, index]) for index, task in enumerate(asked)}


class TaskOutput(OutputAdapter):
    """Labels, or numbers, of several tasks; a task is decoded by its index.

    Args:
        tasks, names: as in `TaskHeads`.
        query_channels: Q.
        shared: ask with one learned query for all tasks, not with one for each.
    """

    channels = None  # reads what comes out of the decoder as it is

    def __init__(
        self,
        tasks: dict[str, int],
        query_channels: int,
        names: dict[str, list[str]] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__()
        self.query_channels: int = query_channels
        self.shared = shared
        self.query = trunc_normal_parameter(1, 1 if shared else len(tasks), query_channels)
        self.heads = TaskHeads(tasks, query_channels, names)

    def index_names(self) -> dict[str, tuple[int, list[str]]]:
        """Returns the task of each query."""
        return {} if self.shared else {"query": (1, self.heads.tasks)}

    def num_queries(self, encoded: Encoded) -> int:
        return len(self.heads.tasks)

    def queries(self, encoded: Encoded, indices: Tensor | None = None) -> Tensor:
        indices = torch.arange(self.num_queries(encoded)) if indices is None else indices
        return self.query.expand(-1, len(indices), -1) if self.shared else self.query[:, indices]

    def postprocess(self, y_BOE: Tensor, encoded: Encoded, indices: Tensor | None = None) -> dict[str, Tensor]:
        """-> by task, logits [B, classes], or numbers [B, 1]; of the tasks at `indices`, if given."""
        predictions: dict[str, Tensor] = self.heads(y_BOE, indices)
        return predictions
