"""Constraints across the fields of a job, and against the catalogue: errors and warnings.

``check_constraints`` runs a list of small rules. Each yields findings at the field to change, and names in ``uses`` the
other fields on which it depends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from mtl_cloud import catalog
from mtl_cloud.catalog.datasets import DATASETS
from mtl_cloud.jobspec.finding import Finding, Loc
from mtl_cloud.jobspec.job import (
    GRADIENT_METHODS,
    DatasetSpec,
    Ec2Compute,
    JobSpec,
    LocalCompute,
    MixingSpec,
    SageMakerCompute,
)
from mtl_cloud.names import ENV_PREFIX, PARAMETER_PREFIX, SECRET_PREFIX
from mtl_cloud.suggest import did_you_mean
from mtl_cloud.tasks import METRICS, NETWORK_TASKS, TASKS, Task

__all__ = ["check_constraints", "trained_tasks"]

_MAX_PREFERENCES = 5
_COMPUTE = ("compute",)
_TYPE = ("compute", "instance_type")
_GPUS = ("compute", "gpu_count")
_NETWORK = ("model", "name")


def check_constraints(job: JobSpec) -> list[Finding]:
    """The findings of all rules, in the order of the job's fields."""
    return [finding for rule in _RULES for finding in rule(job)]


def trained_tasks(job: JobSpec) -> tuple[Task, ...]:
    """The tasks that the network supports, at least one dataset labels, and `model.tasks` (if set) includes."""
    wanted = job.model.tasks or NETWORK_TASKS[job.model.name]
    return tuple(task for task in TASKS if task in wanted and any(task in _labels(d) for d in job.datasets))


def _labels(dataset: DatasetSpec) -> tuple[Task, ...]:
    offered = DATASETS[dataset.name].tasks
    return tuple(task for task in dataset.tasks or offered if task in offered)


def _cloud(job: JobSpec) -> Ec2Compute | SageMakerCompute | None:
    return job.compute if isinstance(job.compute, Ec2Compute | SageMakerCompute) else None


# --- compute ---------------------------------------------------------------------------------------------------------


def _types(job: JobSpec) -> Iterator[tuple[Loc, catalog.InstanceType | None, str]]:
    """Location, catalogue entry (None if unknown) and name of each instance type of the job."""
    compute = _cloud(job)
    for index, name in enumerate(compute.instance_types if compute else ()):
        loc = _TYPE if compute and compute.instance_type == name else (*_TYPE, index)
        known = catalog.instance_names(sagemaker=isinstance(compute, SageMakerCompute))
        yield loc, catalog.instance_type(name) if name in known else None, name


def _instance_type_is_known(job: JobSpec) -> Iterator[Finding]:
    sagemaker = isinstance(job.compute, SageMakerCompute)
    names = catalog.instance_names(sagemaker=sagemaker)
    for loc, machine, name in _types(job):
        if machine:
            continue
        other = name.removeprefix("ml.") if name.startswith("ml.") else f"ml.{name}"
        if other in names:
            theirs, ours = ("an EC2", "SageMaker") if sagemaker else ("a SageMaker", "EC2")
            message = f"{name} is {theirs} instance type"
            yield Finding(loc, message, f"on {ours} use {other}", uses=(("compute", "backend"),))
        else:
            hint = did_you_mean(name, names) or f"it is not in the catalogue of {catalog.collected()}"
            yield Finding(loc, f"unknown instance type {name!r}", hint)


def _gpus_exist(job: JobSpec) -> Iterator[Finding]:
    requested = job.compute.gpu_count
    for loc, machine, name in _types(job):
        if machine and requested > machine.gpu_count:
            message = f"{name} has {_gpus(machine)}, but the job requests {requested}"
            yield Finding(_GPUS, message, f"use gpu_count: {machine.gpu_count}", uses=(loc,))


def _gpus_are_used(job: JobSpec) -> Iterator[Finding]:
    requested = job.compute.gpu_count
    for loc, machine, name in _types(job):
        idle = machine.gpu_count - requested if machine else 0
        if machine and idle > 0:
            verb = "is" if idle == 1 else "are"
            message = f"{name} has {_gpus(machine)} and the job uses {requested}: {idle} {verb} paid for but idle"
            yield Finding(_GPUS, message, "use them all, or a smaller type", uses=(loc,), fatal=False)


def _gpus(machine: catalog.InstanceType) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(machine.gpu_count, f"{machine.gpu_count} GPUs")


def _region_is_known(job: JobSpec) -> Iterator[Finding]:
    compute = _cloud(job)
    if compute and compute.region not in catalog.regions():
        hint = did_you_mean(compute.region, catalog.regions())
        message = f"region {compute.region!r} is not in the catalogue of {catalog.collected()}"
        yield Finding(("compute", "region"), message, hint, fatal=False)


def _reservation_fits(job: JobSpec) -> Iterator[Finding]:
    """A reservation is for one instance type, and is billed whether it is used or not."""
    compute = job.compute
    if not isinstance(compute, Ec2Compute) or compute.capacity_reservation is None:
        return
    loc = ("compute", "capacity_reservation")
    if len(compute.instance_types) > 1:
        yield Finding(loc, "a reservation is for one instance type", "name only that type", uses=(_TYPE,))
    if compute.purchase != "on_demand":
        uses = (("compute", "purchase"),)
        yield Finding(loc, "spot instances cannot use a reservation", "use purchase: on_demand", uses=uses)


def _sagemaker_accepts_it(job: JobSpec) -> Iterator[Finding]:
    """Limits of CreateTrainingJob (API reference, `ResourceConfig` and `VpcConfig`)."""
    compute = job.compute
    if not isinstance(compute, SageMakerCompute):
        return
    types, purchase = compute.instance_types, ("compute", "purchase")
    if compute.purchase == "spot" and len(types) > 1:
        message = f"managed spot training accepts one instance type, not {len(types)}"
        yield Finding(_TYPE, message, f"name only {types[0]}, or use purchase: on_demand", uses=(purchase,))
    if len(types) > _MAX_PREFERENCES or len(set(types)) < len(types):
        yield Finding(_TYPE, f"list at most {_MAX_PREFERENCES} instance types, without duplicates")
    if compute.purchase == "spot" and compute.keep_alive_minutes:
        message, hint = "managed spot training has no warm pools", "remove it, or use purchase: on_demand"
        yield Finding(("compute", "keep_alive_minutes"), message, hint, uses=(purchase,))
    if bool(compute.subnets) != bool(compute.security_groups):
        missing = "security_groups" if compute.subnets else "subnets"
        yield Finding(("compute", missing), "a VPC needs both subnets and security groups")


def _one_process_per_gpu(job: JobSpec) -> Iterator[Finding]:
    compute = job.compute
    if isinstance(compute, LocalCompute) and compute.gpu_count and compute.processes not in {None, compute.gpu_count}:
        message = f"each GPU needs one process: {compute.processes} processes, {compute.gpu_count} GPUs"
        yield Finding(("compute", "processes"), message, "remove `processes`", uses=(_GPUS,))


def _loader_workers_have_cores(job: JobSpec) -> Iterator[Finding]:
    loc = ("training", "loader_workers")
    workers = job.training.loader_workers * job.processes // job.instances
    for at, machine, name in _types(job):
        if machine and workers > machine.vcpus:
            message = f"{workers} loader workers in total, but {name} has {machine.vcpus} vCPUs"
            yield Finding(loc, message, uses=(at, _GPUS), fatal=False)


# --- dataset ---------------------------------------------------------------------------------------------------------


def _dataset_locs(job: JobSpec) -> list[tuple[Loc, DatasetSpec]]:
    if isinstance(job.dataset, DatasetSpec):
        return [(("dataset",), job.dataset)]
    return [(("dataset", index), dataset) for index, dataset in enumerate(job.dataset)]


def _label_locs(job: JobSpec) -> tuple[Loc, ...]:
    """The fields that decide which tasks have labels."""
    return tuple((*loc, field) for loc, _ in _dataset_locs(job) for field in ("name", "tasks"))


def _labels_exist(job: JobSpec) -> Iterator[Finding]:
    for loc, dataset in _dataset_locs(job):
        for index, task in enumerate(dataset.tasks or ()):
            offered = DATASETS[dataset.name].tasks
            if task not in offered:
                message = f"{dataset.name} has no labels for {task}"
                yield Finding((*loc, "tasks", index), message, f"it labels {_and(offered)}", uses=((*loc, "name"),))


def _every_dataset_is_trained_on(job: JobSpec) -> Iterator[Finding]:
    tasks = job.model.tasks or NETWORK_TASKS[job.model.name]
    for loc, dataset in _dataset_locs(job):
        labels = _labels(dataset)
        if labels and not set(labels) & set(tasks):
            message = f"{dataset.name} has no labels for a trained task: it labels {_and(labels)}"
            uses = (_NETWORK, ("model", "tasks"), (*loc, "tasks"))
            yield Finding((*loc, "name"), message, f"{job.model.name} trains {_and(tasks)}", uses=uses)


# --- model -----------------------------------------------------------------------------------------------------------


def _tasks_are_offered(job: JobSpec) -> Iterator[Finding]:
    name, offered = job.model.name, NETWORK_TASKS[job.model.name]
    for index, task in enumerate(job.model.tasks or ()):
        loc = ("model", "tasks", index)
        if task not in offered:
            yield Finding(loc, f"{name} does not support {task}", f"it supports {_and(offered)}", uses=(_NETWORK,))
        elif not any(task in _labels(dataset) for dataset in job.datasets):
            labelled = [task for task in TASKS if any(task in _labels(dataset) for dataset in job.datasets)]
            hint = f"labelled: {_and(labelled)}"
            yield Finding(loc, f"no dataset labels {task}", hint, uses=_label_locs(job))


def _only_mtl_net_shares(job: JobSpec) -> Iterator[Finding]:
    model = job.model
    if model.name == "mtl_net":
        return
    for stage, kind in model.sharing.items():
        if kind != "none":
            message = f"{model.name} is a single network and cannot share layers"
            yield Finding(("model", "sharing", str(stage)), message, "sharing is for mtl_net", uses=(_NETWORK,))
    if "fusion" in model.model_fields_set and model.fusion.enabled:
        message = f"{model.name} is a single network and has no fusion layers"
        yield Finding(("model", "fusion"), message, "fusion is for mtl_net", uses=(_NETWORK,))


def _hard_sharing_starts_at_the_input(job: JobSpec) -> Iterator[Finding]:
    hard = [stage for stage, kind in job.model.sharing.items() if kind == "hard"]
    for stage in sorted(hard):
        missing = [before for before in range(1, stage) if before not in hard]
        if missing:
            message = f"hard sharing must start at stage 1, but stage {missing[0]} is not hard"
            uses = tuple(("model", "sharing", str(before)) for before in range(1, stage))
            hint = f"set stage {missing[0]} to hard, or stage {stage} to another kind"
            yield Finding(("model", "sharing", str(stage)), message, hint, uses=uses)


def _pretrained_fits(job: JobSpec) -> Iterator[Finding]:
    offered = NETWORK_TASKS[job.model.name]
    for task in TASKS:
        if getattr(job.model.pretrained, task) is not None and task not in offered:
            message = f"{job.model.name} has no network for {task}"
            yield Finding(("model", "pretrained", task), message, f"it has {_and(offered)}", uses=(_NETWORK,))


def _anchors_are_nine(job: JobSpec) -> Iterator[Finding]:
    count = len(job.model.anchors or range(9))
    if count != 9:
        yield Finding(("model", "anchors"), f"YOLOv3 needs nine anchors, three per scale, not {count}")


# --- training --------------------------------------------------------------------------------------------------------


def _batch_divides(job: JobSpec) -> Iterator[Finding]:
    batch, processes = job.training.batch_size, job.processes
    if batch % processes:
        down, up = batch // processes * processes, -(-batch // processes) * processes
        hint = f"nearest: {down} or {up}" if down else f"nearest: {up}"
        message = f"{batch} is not divisible by the number of processes, {processes}"
        yield Finding(("training", "batch_size"), message, hint, uses=(_GPUS, ("compute", "processes")))


def _crops_keep_labels(job: JobSpec) -> Iterator[Finding]:
    cropped = [task for task in trained_tasks(job) if task != "classification"]
    if job.training.fit == "crop" and cropped:
        message = f"a centre crop would remove labels of {_and(cropped)}"
        hint = "use `crop` for classification only"
        yield Finding(("training", "fit"), message, hint, uses=(_NETWORK, *_label_locs(job)))


def _sizes_are_in_order(job: JobSpec) -> Iterator[Finding]:
    loc, sizes = ("training", "multi_scale"), job.training.multi_scale
    if sizes and sizes[0] > sizes[1]:
        yield Finding(loc, f"{sizes[0]} is more than {sizes[1]}", f"use [{sizes[1]}, {sizes[0]}]")


def _mixing_applies(job: JobSpec) -> Iterator[Finding]:
    loc, mixing = ("training", "mixing"), job.training.mixing
    if mixing != MixingSpec() and len(job.datasets) == 1:
        message = "mixing needs several datasets"
        yield Finding(loc, message, "remove `mixing`, or list several datasets", uses=(("dataset",),))
    if mixing.ratio != "temperature" and mixing.temperature != MixingSpec().temperature:
        message = f"a temperature only applies to `ratio: temperature`, not to {mixing.ratio}"
        yield Finding((*loc, "temperature"), message, "use `ratio: temperature`", uses=((*loc, "ratio"),))


def _round_robin_fits_batch_statistics(job: JobSpec) -> Iterator[Finding]:
    """With one dataset per batch, batch statistics of shared layers alternate between datasets."""
    shared = any(kind != "none" for kind in job.model.sharing.values())
    if _is_round_robin(job) and shared and job.training.norm != "frozen":
        message = (
            "round_robin: shared layers see one dataset at a time, so their batch statistics alternate between datasets"
        )
        hint = "use `norm: frozen` (with pretrained weights), or `schedule: mixed`"
        uses = (("model", "sharing"), ("training", "mixing", "schedule"))
        yield Finding(("training", "norm"), message, hint, uses=uses, fatal=False)


def _round_robin_trains_fusion(job: JobSpec) -> Iterator[Finding]:
    """Fusion is trained in steps that run all sub-networks: with a dataset that labels all tasks, or shared stages."""
    tasks, shared = set(trained_tasks(job)), any(kind != "none" for kind in job.model.sharing.values())
    joint = shared or any(tasks <= set(_labels(dataset)) for dataset in job.datasets)
    if job.model.name == "mtl_net" and job.model.fusion.enabled and _is_round_robin(job) and not joint:
        message = "round_robin: no dataset labels all tasks, so the fusion layers are never trained"
        hint = "use `fusion: {enabled: false}`, or `schedule: mixed`"
        yield Finding(("model", "fusion"), message, hint, uses=(("training", "mixing", "schedule"),), fatal=False)


def _is_round_robin(job: JobSpec) -> bool:
    return len(job.datasets) > 1 and job.training.mixing.schedule == "round_robin"


def _precision_fits(job: JobSpec) -> Iterator[Finding]:
    loc, precision = ("training", "precision"), job.training.precision
    if precision == "fp16" and not job.compute.gpu_count:
        yield Finding(loc, "fp16 needs a GPU", "on the CPU: bf16 or fp32", uses=(_GPUS,))
    for at, machine, name in _types(job):
        if precision == "bf16" and machine and machine.gpu and not machine.has_bf16 and job.compute.gpu_count:
            message = f"the {machine.gpu} of {name} has no bf16 hardware, so bf16 is slower than fp32"
            yield Finding(loc, message, "use fp16", uses=(at, _GPUS), fatal=False)


def _weights_are_used(job: JobSpec) -> Iterator[Finding]:
    weighting, tasks = job.training.loss_weighting, trained_tasks(job)
    loc = ("training", "loss_weighting", "weights")
    if weighting.weights and weighting.name != "fixed":
        message = f"weights only apply to `name: fixed`, not to {weighting.name}"
        yield Finding(loc, message, "use `name: fixed`", uses=(("training", "loss_weighting", "name"),))
    for task in weighting.weights:
        if task not in tasks:
            uses = (_NETWORK, ("model", "tasks"), *_label_locs(job))
            yield Finding((*loc, task), f"{task} is not trained in this job", f"trained: {_and(tasks)}", uses=uses)


def _batch_statistics_are_shared(job: JobSpec) -> Iterator[Finding]:
    """Only the data-parallel wrapper broadcasts batch statistics; these methods do not use it."""
    method, norm = job.training.loss_weighting.name, job.training.norm
    if method in GRADIENT_METHODS and norm == "local" and job.processes > 1:
        message = f"with {method}, each of the {job.processes} processes would keep its own batch statistics"
        uses = (("training", "loss_weighting", "name"), _GPUS, ("compute", "processes"))
        yield Finding(("training", "norm"), message, "use `norm: sync`", uses=uses)


def _divergence_is_used(job: JobSpec) -> Iterator[Finding]:
    divergence, loc = job.training.divergence, ("training", "divergence")
    for field in sorted({"lr_factor", "max_rewinds"} & divergence.model_fields_set):
        if job.training.on_divergence != "rewind":
            message = "it has no effect with `on_divergence: fail`"
            hint = "use `on_divergence: rewind`"
            yield Finding((*loc, field), message, hint, uses=(("training", "on_divergence"),))


def _best_metric_exists(job: JobSpec) -> Iterator[Finding]:
    best, loc = job.checkpoint.keep_best, ("checkpoint", "keep_best", "metric")
    names = [f"{task}/{name}" for task in trained_tasks(job) for name in (*METRICS[task], "loss")]
    if best and best.metric is not None and best.metric not in names:
        hint = did_you_mean(best.metric, names) or f"metrics of this job: {', '.join(names)}"
        yield Finding(loc, f"unknown metric {best.metric!r}", hint, uses=(_NETWORK, ("model", "tasks")))


# --- places ----------------------------------------------------------------------------------------------------------


def _instance_can_access(job: JobSpec) -> Iterator[Finding]:
    """An instance cannot access local folders, and loses its own when it ends."""
    if not _cloud(job):
        return
    uses = (("compute", "backend"),)
    paths = [((*loc, "uri"), dataset.uri) for loc, dataset in _dataset_locs(job)]
    paths += [(("model", "pretrained", task), getattr(job.model.pretrained, task)) for task in TASKS]
    for loc, path in paths:
        if path is not None and "://" not in path:
            message = f"{path} is a local path, which the instance cannot read"
            yield Finding(loc, message, "copy it to S3 and give its s3:// URL", uses=uses)
    if "://" not in job.storage:
        message = f"{job.storage!r} is a folder, which is lost with the instance"
        yield Finding(("storage",), message, "use a bucket: s3://bucket/prefix", uses=uses)


_SECRET_NAME = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?)$")
_READABLE_PARAMETER = re.compile(rf"{PARAMETER_PREFIX}|arn:[^:]*:ssm:[^:]*:[^:]*:parameter{PARAMETER_PREFIX}")
_READABLE_SECRET = re.compile(rf"{SECRET_PREFIX}|arn:[^:]*:secretsmanager:[^:]*:[^:]*:secret:{SECRET_PREFIX}")


def _env_names_are_not_reserved(job: JobSpec) -> Iterator[Finding]:
    for name in job.env:
        if name.startswith(ENV_PREFIX):
            yield Finding(("env", name), f"names that start with {ENV_PREFIX} are reserved", at_key=True)


def _secrets_are_by_reference(job: JobSpec) -> Iterator[Finding]:
    for name, value in job.env.items():
        if isinstance(value, str) and _SECRET_NAME.search(name):
            message = f"{name} looks like a secret, and would be stored in the run record in plain text"
            hint = f"store it in Parameter Store, and write {{ssm: {PARAMETER_PREFIX}…}}"
            yield Finding(("env", name), message, hint, fatal=False)


def _secrets_are_readable(job: JobSpec) -> Iterator[Finding]:
    """The roles of ``bootstrap`` may read secrets and parameters under the product's prefix only."""
    for name, value in job.env.items() if _cloud(job) else ():
        if isinstance(value, str):
            continue
        if not (_READABLE_PARAMETER.match(value.ssm or "") or _READABLE_SECRET.match(value.secretsmanager or "")):
            message = f"the role of `mtl-cloud bootstrap` cannot read {value.ssm or value.secretsmanager}"
            hint = (
                f"rename it to {PARAMETER_PREFIX}… (ssm) or {SECRET_PREFIX}… (secretsmanager), or grant the role access"
            )
            yield Finding(("env", name), message, hint, uses=(("compute", "backend"),), fatal=False)


def _uri_is_given(job: JobSpec) -> Iterator[Finding]:
    for loc, dataset in _dataset_locs(job):
        if DATASETS[dataset.name].needs_uri and dataset.uri is None:
            message = f"{dataset.name} needs the path or URL of its files"
            yield Finding((*loc, "uri"), message, uses=((*loc, "name"),))


def _and(names: Iterable[str]) -> str:
    *most, last = names or ("nothing",)
    return f"{', '.join(most)} and {last}" if most else last


_RULES: tuple[Callable[[JobSpec], Iterator[Finding]], ...] = (
    _instance_type_is_known,
    _gpus_exist,
    _gpus_are_used,
    _region_is_known,
    _reservation_fits,
    _sagemaker_accepts_it,
    _one_process_per_gpu,
    _loader_workers_have_cores,
    _uri_is_given,
    _labels_exist,
    _every_dataset_is_trained_on,
    _tasks_are_offered,
    _only_mtl_net_shares,
    _hard_sharing_starts_at_the_input,
    _pretrained_fits,
    _anchors_are_nine,
    _batch_divides,
    _crops_keep_labels,
    _sizes_are_in_order,
    _mixing_applies,
    _round_robin_fits_batch_statistics,
    _round_robin_trains_fusion,
    _precision_fits,
    _weights_are_used,
    _batch_statistics_are_shared,
    _divergence_is_used,
    _best_metric_exists,
    _env_names_are_not_reserved,
    _secrets_are_by_reference,
    _secrets_are_readable,
    _instance_can_access,
)
