"""What a job's fields mean together, and against the catalogue: mistakes and doubts that no single field shows.

``check_facts`` is a list of small rules. Each yields findings at the field to change, and names in ``uses`` the further
fields that it rests on.
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

__all__ = ["check_facts", "trained_tasks"]

_MOST_PREFERENCES = 5
_COMPUTE = ("compute",)
_TYPE = ("compute", "instance_type")
_GPUS = ("compute", "gpu_count")
_NETWORK = ("model", "name")


def check_facts(job: JobSpec) -> list[Finding]:
    """All findings of all rules, in the order of the job's fields."""
    return [finding for rule in _RULES for finding in rule(job)]


def trained_tasks(job: JobSpec) -> tuple[Task, ...]:
    """The tasks that the network offers, some dataset labels, and `model.tasks` does not leave out."""
    wanted = job.model.tasks or NETWORK_TASKS[job.model.name]
    return tuple(task for task in TASKS if task in wanted and any(task in _labels(d) for d in job.datasets))


def _labels(dataset: DatasetSpec) -> tuple[Task, ...]:
    offered = DATASETS[dataset.name].tasks
    return tuple(task for task in dataset.tasks or offered if task in offered)


def _cloud(job: JobSpec) -> Ec2Compute | SageMakerCompute | None:
    return job.compute if isinstance(job.compute, Ec2Compute | SageMakerCompute) else None


# --- compute ---------------------------------------------------------------------------------------------------------


def _types(job: JobSpec) -> Iterator[tuple[Loc, catalog.InstanceType | None, str]]:
    """Place, facts and name of each instance type that the job accepts."""
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
            whose, ours = ("EC2", "SageMaker") if sagemaker else ("SageMaker", "EC2")
            yield Finding(loc, f"{name} is {whose}'s name", f"on {ours} it is {other}", uses=(("compute", "backend"),))
        else:
            hint = did_you_mean(name, names) or f"the catalogue of {catalog.collected()} does not hold it"
            yield Finding(loc, f"unknown instance type {name!r}", hint)


def _gpus_are_there(job: JobSpec) -> Iterator[Finding]:
    asked = job.compute.gpu_count
    for loc, machine, name in _types(job):
        if machine and asked > machine.gpu_count:
            message = f"{name} has {_gpus(machine)}, and the job asks for {asked}"
            yield Finding(_GPUS, message, f"write gpu_count: {machine.gpu_count}", uses=(loc,))


def _gpus_are_used(job: JobSpec) -> Iterator[Finding]:
    asked = job.compute.gpu_count
    for loc, machine, name in _types(job):
        idle = machine.gpu_count - asked if machine else 0
        if machine and idle > 0:
            verb = "is" if idle == 1 else "are"
            message = f"{name} has {_gpus(machine)} and the job uses {asked}: {idle} {verb} paid and idle"
            yield Finding(_GPUS, message, "use them all, or a smaller type", uses=(loc,), fatal=False)


def _gpus(machine: catalog.InstanceType) -> str:
    return {0: "no GPU", 1: "1 GPU"}.get(machine.gpu_count, f"{machine.gpu_count} GPUs")


def _region_is_known(job: JobSpec) -> Iterator[Finding]:
    compute = _cloud(job)
    if compute and compute.region not in catalog.regions():
        hint = did_you_mean(compute.region, catalog.regions())
        message = f"region {compute.region!r} is not in the catalogue of {catalog.collected()}"
        yield Finding(("compute", "region"), message, hint, fatal=False)


def _reservation_holds_it(job: JobSpec) -> Iterator[Finding]:
    """A reservation is of one type, and paid for whether it is used or not."""
    compute = job.compute
    if not isinstance(compute, Ec2Compute) or compute.capacity_reservation is None:
        return
    loc = ("compute", "capacity_reservation")
    if len(compute.instance_types) > 1:
        yield Finding(loc, "a reservation holds one instance type", "name that one alone", uses=(_TYPE,))
    if compute.purchase != "on_demand":
        uses = (("compute", "purchase"),)
        yield Finding(loc, "spot instances do not run in a reservation", "write purchase: on_demand", uses=uses)


def _sagemaker_takes_it(job: JobSpec) -> Iterator[Finding]:
    """What CreateTrainingJob refuses (its API reference, `ResourceConfig` and `VpcConfig`)."""
    compute = job.compute
    if not isinstance(compute, SageMakerCompute):
        return
    types, purchase = compute.instance_types, ("compute", "purchase")
    if compute.purchase == "spot" and len(types) > 1:
        message = f"managed spot takes one instance type, and here are {len(types)}"
        yield Finding(_TYPE, message, f"leave {types[0]} alone, or buy on demand", uses=(purchase,))
    if len(types) > _MOST_PREFERENCES or len(set(types)) < len(types):
        yield Finding(_TYPE, f"a list of preferences holds up to {_MOST_PREFERENCES} types, each once")
    if compute.purchase == "spot" and compute.keep_alive_minutes:
        message = "managed spot keeps no instance warm"
        yield Finding(("compute", "keep_alive_minutes"), message, "leave it out, or buy on demand", uses=(purchase,))
    if bool(compute.subnets) != bool(compute.security_groups):
        missing = "security_groups" if compute.subnets else "subnets"
        yield Finding(("compute", missing), "a VPC is named by subnets and security groups together")


def _one_process_a_gpu(job: JobSpec) -> Iterator[Finding]:
    compute = job.compute
    if isinstance(compute, LocalCompute) and compute.gpu_count and compute.processes not in {None, compute.gpu_count}:
        message = f"one process drives one GPU: {compute.processes} processes, {compute.gpu_count} GPUs"
        yield Finding(("compute", "processes"), message, "leave `processes` out", uses=(_GPUS,))


def _loader_workers_have_cores(job: JobSpec) -> Iterator[Finding]:
    loc = ("training", "loader_workers")
    workers = job.training.loader_workers * job.processes // job.instances
    for at, machine, name in _types(job):
        if machine and workers > machine.vcpus:
            message = f"{workers} loader workers in all, on the {machine.vcpus} vCPUs of {name}"
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


def _every_dataset_teaches(job: JobSpec) -> Iterator[Finding]:
    tasks = job.model.tasks or NETWORK_TASKS[job.model.name]
    for loc, dataset in _dataset_locs(job):
        labels = _labels(dataset)
        if labels and not set(labels) & set(tasks):
            message = f"{dataset.name} teaches nothing here: it labels {_and(labels)}"
            uses = (_NETWORK, ("model", "tasks"), (*loc, "tasks"))
            yield Finding((*loc, "name"), message, f"{job.model.name} is trained for {_and(tasks)}", uses=uses)


# --- model -----------------------------------------------------------------------------------------------------------


def _tasks_are_offered(job: JobSpec) -> Iterator[Finding]:
    name, offered = job.model.name, NETWORK_TASKS[job.model.name]
    for index, task in enumerate(job.model.tasks or ()):
        loc = ("model", "tasks", index)
        if task not in offered:
            yield Finding(loc, f"{name} cannot learn {task}", f"it learns {_and(offered)}", uses=(_NETWORK,))
        elif not any(task in _labels(dataset) for dataset in job.datasets):
            labelled = [task for task in TASKS if any(task in _labels(dataset) for dataset in job.datasets)]
            hint = f"labelled: {_and(labelled)}"
            yield Finding(loc, f"no dataset labels {task}", hint, uses=_label_locs(job))


def _only_mtl_net_joins(job: JobSpec) -> Iterator[Finding]:
    model = job.model
    if model.name == "mtl_net":
        return
    for stage, kind in model.sharing.items():
        if kind != "none":
            message = f"{model.name} is a single network and has nothing to share with"
            yield Finding(("model", "sharing", str(stage)), message, "sharing is for mtl_net", uses=(_NETWORK,))
    if "fusion" in model.model_fields_set and model.fusion.enabled:
        message = f"{model.name} is a single network and has nothing to fuse"
        yield Finding(("model", "fusion"), message, "fusion is for mtl_net", uses=(_NETWORK,))


def _one_trunk_from_the_start(job: JobSpec) -> Iterator[Finding]:
    hard = [stage for stage, kind in job.model.sharing.items() if kind == "hard"]
    for stage in sorted(hard):
        missing = [before for before in range(1, stage) if before not in hard]
        if missing:
            message = f"one trunk shares from the input on: stage {missing[0]} before it is not hard"
            uses = tuple(("model", "sharing", str(before)) for before in range(1, stage))
            hint = f"share {missing[0]} hard too, or not {stage}"
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
        yield Finding(("model", "anchors"), f"YOLOv3 has nine anchors, three a scale; here are {count}")


# --- training --------------------------------------------------------------------------------------------------------


def _batch_divides(job: JobSpec) -> Iterator[Finding]:
    batch, processes = job.training.batch_size, job.processes
    if batch % processes:
        down, up = batch // processes * processes, -(-batch // processes) * processes
        hint = f"nearest: {down} or {up}" if down else f"nearest: {up}"
        message = f"{batch} images do not divide over {processes} processes"
        yield Finding(("training", "batch_size"), message, hint, uses=(_GPUS, ("compute", "processes")))


def _crops_keep_the_truth(job: JobSpec) -> Iterator[Finding]:
    cut = [task for task in trained_tasks(job) if task != "classification"]
    if job.training.fit == "crop" and cut:
        message = f"a centre crop would hide part of the truth for {_and(cut)}"
        yield Finding(
            ("training", "fit"), message, "`crop` is for classifiers alone", uses=(_NETWORK, *_label_locs(job))
        )


def _sizes_are_a_range(job: JobSpec) -> Iterator[Finding]:
    loc, sizes = ("training", "multi_scale"), job.training.multi_scale
    if sizes and sizes[0] > sizes[1]:
        yield Finding(loc, f"{sizes[0]} is more than {sizes[1]}", f"write [{sizes[1]}, {sizes[0]}]")


def _mixing_applies(job: JobSpec) -> Iterator[Finding]:
    loc, mixing = ("training", "mixing"), job.training.mixing
    if mixing != MixingSpec() and len(job.datasets) == 1:
        message = "there is one dataset, and nothing to mix it with"
        yield Finding(loc, message, "leave `mixing` out, or list several datasets", uses=(("dataset",),))
    if mixing.ratio != "temperature" and mixing.temperature != MixingSpec().temperature:
        message = f"a temperature belongs to `ratio: temperature`, not to {mixing.ratio}"
        yield Finding((*loc, "temperature"), message, "write `ratio: temperature`", uses=((*loc, "ratio"),))


def _turns_leave_statistics_alone(job: JobSpec) -> Iterator[Finding]:
    """With one dataset at a time, batch statistics of layers that several datasets pass swing from one to the other."""
    shared = any(kind != "none" for kind in job.model.sharing.values())
    if _takes_turns(job) and shared and job.training.norm != "frozen":
        message = "round_robin: shared layers see one dataset at a time, and their batch statistics swing between them"
        hint = "write `norm: frozen` (with pretrained weights), or `schedule: mixed`"
        uses = (("model", "sharing"), ("training", "mixing", "schedule"))
        yield Finding(("training", "norm"), message, hint, uses=uses, fatal=False)


def _turns_reach_the_joint_layers(job: JobSpec) -> Iterator[Finding]:
    """They learn in steps that run all sub-networks: of a dataset that labels all tasks, or where stages share."""
    tasks, shared = set(trained_tasks(job)), any(kind != "none" for kind in job.model.sharing.values())
    joint = shared or any(tasks <= set(_labels(dataset)) for dataset in job.datasets)
    if job.model.name == "mtl_net" and job.model.fusion.enabled and _takes_turns(job) and not joint:
        message = "round_robin: no dataset labels all tasks, so the joint layers never learn"
        hint = "write `fusion: {enabled: false}`, or `schedule: mixed`"
        yield Finding(("model", "fusion"), message, hint, uses=(("training", "mixing", "schedule"),), fatal=False)


def _takes_turns(job: JobSpec) -> bool:
    return len(job.datasets) > 1 and job.training.mixing.schedule == "round_robin"


def _precision_fits(job: JobSpec) -> Iterator[Finding]:
    loc, precision = ("training", "precision"), job.training.precision
    if precision == "fp16" and not job.compute.gpu_count:
        yield Finding(loc, "fp16 needs a GPU", "on the CPU: bf16 or fp32", uses=(_GPUS,))
    for at, machine, name in _types(job):
        if precision == "bf16" and machine and machine.gpu and not machine.has_bf16 and job.compute.gpu_count:
            message = f"{name}'s {machine.gpu} has no bf16 units: it is slower than fp32 there"
            yield Finding(loc, message, "use fp16", uses=(at, _GPUS), fatal=False)


def _weights_are_used(job: JobSpec) -> Iterator[Finding]:
    weighting, tasks = job.training.loss_weighting, trained_tasks(job)
    loc = ("training", "loss_weighting", "weights")
    if weighting.weights and weighting.name != "fixed":
        message = f"weights belong to `name: fixed`, not to {weighting.name}"
        yield Finding(loc, message, "write `name: fixed`", uses=(("training", "loss_weighting", "name"),))
    for task in weighting.weights:
        if task not in tasks:
            uses = (_NETWORK, ("model", "tasks"), *_label_locs(job))
            yield Finding((*loc, task), f"{task} is not trained here", f"trained: {_and(tasks)}", uses=uses)


def _statistics_are_one(job: JobSpec) -> Iterator[Finding]:
    """Only the data-parallel wrapper hands the first process's statistics to the others; these methods go without."""
    method, norm = job.training.loss_weighting.name, job.training.norm
    if method in GRADIENT_METHODS and norm == "local" and job.processes > 1:
        message = f"with {method}, each of the {job.processes} processes would keep batch statistics of its own"
        uses = (("training", "loss_weighting", "name"), _GPUS, ("compute", "processes"))
        yield Finding(("training", "norm"), message, "write `norm: sync`", uses=uses)


def _divergence_is_used(job: JobSpec) -> Iterator[Finding]:
    divergence, loc = job.training.divergence, ("training", "divergence")
    for field in sorted({"lr_factor", "max_rewinds"} & divergence.model_fields_set):
        if job.training.on_divergence != "rewind":
            message = "nothing is rewound with `on_divergence: fail`"
            yield Finding(
                (*loc, field), message, "write `on_divergence: rewind`", uses=(("training", "on_divergence"),)
            )


def _best_is_measured(job: JobSpec) -> Iterator[Finding]:
    best, loc = job.checkpoint.keep_best, ("checkpoint", "keep_best", "metric")
    names = [f"{task}/{name}" for task in trained_tasks(job) for name in (*METRICS[task], "loss")]
    if best and best.metric is not None and best.metric not in names:
        hint = did_you_mean(best.metric, names) or f"measured: {', '.join(names)}"
        yield Finding(loc, f"{best.metric!r} is not measured here", hint, uses=(_NETWORK, ("model", "tasks")))


# --- places ----------------------------------------------------------------------------------------------------------


def _machine_can_reach(job: JobSpec) -> Iterator[Finding]:
    """An instance sees neither this machine's folders nor keeps its own."""
    if not _cloud(job):
        return
    uses = (("compute", "backend"),)
    paths = [((*loc, "uri"), dataset.uri) for loc, dataset in _dataset_locs(job)]
    paths += [(("model", "pretrained", task), getattr(job.model.pretrained, task)) for task in TASKS]
    for loc, path in paths:
        if path is not None and "://" not in path:
            message = f"{path} lies on this machine, where the instance cannot read it"
            yield Finding(loc, message, "copy it to S3 and name its s3:// URL", uses=uses)
    if "://" not in job.storage:
        message = f"{job.storage!r} is a folder, and the instance's folders vanish with it"
        yield Finding(("storage",), message, "name a bucket: s3://bucket/prefix", uses=uses)


_SECRET_NAME = re.compile(r"(?i)(^|_)(key|token|secret|password|passwd|credentials?)$")
_READABLE_PARAMETER = re.compile(rf"{PARAMETER_PREFIX}|arn:[^:]*:ssm:[^:]*:[^:]*:parameter{PARAMETER_PREFIX}")
_READABLE_SECRET = re.compile(rf"{SECRET_PREFIX}|arn:[^:]*:secretsmanager:[^:]*:[^:]*:secret:{SECRET_PREFIX}")


def _env_is_ours_to_set(job: JobSpec) -> Iterator[Finding]:
    for name in job.env:
        if name.startswith(ENV_PREFIX):
            yield Finding(("env", name), f"names that begin with {ENV_PREFIX} are the supervisor's", at_key=True)


def _secrets_are_by_reference(job: JobSpec) -> Iterator[Finding]:
    for name, value in job.env.items():
        if isinstance(value, str) and _SECRET_NAME.search(name):
            message = f"{name} looks like a secret, and will stand in the run record in clear"
            yield Finding(("env", name), message, f"write {{ssm: {PARAMETER_PREFIX}…}}, and put it there", fatal=False)


def _secrets_are_open_to_runs(job: JobSpec) -> Iterator[Finding]:
    """The roles of ``bootstrap`` may read what is named after us, and nothing else."""
    for name, value in job.env.items() if _cloud(job) else ():
        if isinstance(value, str):
            continue
        if not (_READABLE_PARAMETER.match(value.ssm or "") or _READABLE_SECRET.match(value.secretsmanager or "")):
            message = f"the role of `mtl-cloud bootstrap` cannot read {value.ssm or value.secretsmanager}"
            hint = f"name it {PARAMETER_PREFIX}… (ssm) or {SECRET_PREFIX}… (secretsmanager), or allow it to the role"
            yield Finding(("env", name), message, hint, uses=(("compute", "backend"),), fatal=False)


def _uri_is_given(job: JobSpec) -> Iterator[Finding]:
    for loc, dataset in _dataset_locs(job):
        if DATASETS[dataset.name].needs_uri and dataset.uri is None:
            message = f"{dataset.name} needs the folder or archive that holds it"
            yield Finding((*loc, "uri"), message, uses=((*loc, "name"),))


def _and(names: Iterable[str]) -> str:
    *most, last = names or ("nothing",)
    return f"{', '.join(most)} and {last}" if most else last


_RULES: tuple[Callable[[JobSpec], Iterator[Finding]], ...] = (
    _instance_type_is_known,
    _gpus_are_there,
    _gpus_are_used,
    _region_is_known,
    _reservation_holds_it,
    _sagemaker_takes_it,
    _one_process_a_gpu,
    _loader_workers_have_cores,
    _uri_is_given,
    _labels_exist,
    _every_dataset_teaches,
    _tasks_are_offered,
    _only_mtl_net_joins,
    _one_trunk_from_the_start,
    _pretrained_fits,
    _anchors_are_nine,
    _batch_divides,
    _crops_keep_the_truth,
    _sizes_are_a_range,
    _mixing_applies,
    _turns_leave_statistics_alone,
    _turns_reach_the_joint_layers,
    _precision_fits,
    _weights_are_used,
    _statistics_are_one,
    _divergence_is_used,
    _best_is_measured,
    _env_is_ours_to_set,
    _secrets_are_by_reference,
    _secrets_are_open_to_runs,
    _machine_can_reach,
)
