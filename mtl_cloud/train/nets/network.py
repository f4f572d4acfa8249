"""The network of a job: one or several sub-networks on the same images, feature sharing, and fusion layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from torch import Tensor, nn

from mtl_cloud.jobspec.job import SharingKind
from mtl_cloud.tasks import TASKS, Task
from mtl_cloud.train.nets.fusion import JointFusion
from mtl_cloud.train.nets.sharing import Hard, Sharing, hard_stages, soft_sharing, trunk_of
from mtl_cloud.train.nets.staged import STAGES, StagedNetwork
from mtl_cloud.train.tasks.base import Outputs

__all__ = ["Network"]


class Network(nn.Module):
    """Runs sub-networks stage by stage and exchanges features after each stage that is shared.

    A single-task network has one sub-network. ``state_dict`` keys: ``subnets.<task>.<key of the sub-network>``,
    ``sharing.<stage>...``, ``fusion...``. With hard sharing, the trunk computes the hard stages for all tasks, and the
    other sub-networks do not have these stages.

    Raises ``TrainingError`` if the hard stages are not the leading ones.
    """

    def __init__(
        self,
        subnets: Mapping[Task, StagedNetwork],
        sharing: Mapping[int, SharingKind] | None = None,
        fusion: JointFusion | None = None,
    ) -> None:
        super().__init__()
        self.tasks: tuple[Task, ...] = tuple(task for task in TASKS if task in subnets)
        self.trunk = trunk_of(self.tasks)
        self.subnets = nn.ModuleDict({task: subnets[task] for task in self.tasks})
        shared = (sharing or {}) if len(self.tasks) > 1 else {}
        self.kinds = {stage: kind for stage, kind in shared.items() if kind != "none"}
        self.hard_stages = hard_stages(self.kinds)
        self.sharing = nn.ModuleDict({str(stage): self._exchange(stage) for stage in sorted(self.kinds)})
        self.fusion = fusion
        for task in self.tasks:
            if task != self.trunk:
                self.subnet(task).drop_stages(self.hard_stages)

    def subnet(self, task: Task) -> StagedNetwork:
        """The sub-network of a task."""
        return cast(StagedNetwork, self.subnets[task])

    def forward(self, images: Tensor, tasks: Collection[Task] | None = None) -> Outputs:
        """Map images [B, 3, S, S], float in 0..1, S a multiple of 32, to the outputs of ``tasks`` (default all).

        If no stage is shared, only the sub-networks of ``tasks`` run. The fusion layers correct the class logits only
        if all sub-networks run, so a batch with class labels alone does not pay for the others.
        """
        wanted = tuple(task for task in self.tasks if tasks is None or task in tasks)
        running = self.tasks if self.kinds else wanted
        features = self._encode(images, running)
        outputs: Outputs = {task: self.subnet(task).head(features[task], images.shape[-1]) for task in running}
        if self.fusion is not None and running == self.tasks:
            correction = self.fusion([features[task][5] for task in running], outputs)
            outputs["classification"] = outputs["classification"] + correction
        return {task: outputs[task] for task in wanted}

    def sharing_report(self) -> dict[str, Any]:
        """Map stage -> ``{"kind": ..., "coefficients": {receiver: {sender: value}}}``; empty if nothing is shared.

        Values: for ``gate`` the opening of the gate, 0..1; for ``cross_stitch`` the mean magnitude over the channels,
        including a task's own coefficients; for ``hard`` 1 from the trunk.
        """
        return {
            str(stage): {"kind": self.kinds[stage], "coefficients": self._sharing_after(stage).report()}
            for stage in sorted(self.kinds)
        }

    def _sharing_after(self, stage: int) -> Sharing:
        return cast(Sharing, self.sharing[str(stage)])

    def _exchange(self, stage: int) -> Sharing:
        kind = self.kinds[stage]
        stages = {task: self.subnet(task).stages[stage - 1] for task in self.tasks}
        if kind != "hard":
            return soft_sharing(kind, stages)
        others = [task for task in self.tasks if task != self.trunk]
        is_last = stage == self.hard_stages[-1]
        return Hard(self.trunk, stages, tuple(t for t in others if is_last or stage in self.subnet(t).taps))

    def _encode(self, images: Tensor, running: tuple[Task, ...]) -> dict[Task, dict[int, Tensor]]:
        """Map task -> stage -> the features that the task's head reads, after the exchange."""
        streams = {task: self.subnet(task).prepare(images) for task in running}
        features: dict[Task, dict[int, Tensor]] = {task: {} for task in running}
        for stage in STAGES:
            encoders = (self.trunk,) if stage in self.hard_stages else running
            streams = {task: self.subnet(task).forward_stage(stage, streams[task]) for task in encoders}
            if stage in self.kinds:
                streams = self._sharing_after(stage)(streams)
            for task, x in streams.items():
                if stage in self.subnet(task).taps:
                    features[task][stage] = x
        return features
