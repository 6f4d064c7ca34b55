"""Suite ``quality``: what a language model has learned after a training."""

from __future__ import annotations

from dynbench.harness.case import Case
from dynbench.harness.subject import Subject, Unsupported
from dynbench.suites.catalog import provider_info
from dynbench.suites.providers.base import torch_version
from dynbench.suites.providers.core import library_version
from dynbench.suites.quality.recipe import Recipe
from dynbench.suites.quality.tasks.making import make_task
from dynbench.suites.quality.tasks.needle import Needle, reach_problem
from dynbench.suites.quality.training import Training
from dynbench.suites.quality.variants import variant_problem
from dynbench.suites.quality.work import training_work
from dynbench.suites.spec import Spec


def quality_subject(case: Case, recipe: Recipe | None = None) -> Subject:
    """What the harness measures for a case of this suite: its whole training, called once.

    Raises Unsupported for a model, variant, task or size that does not exist, and Unavailable for
    a task whose data is not here.
    """
    spec = Spec.of(case)
    info = provider_info(case.provider)
    problem = variant_problem(str(case.settings.get("variant", "")), info.name if info else "")
    if problem:
        raise Unsupported(problem)
    task = make_task(str(case.workload["task"]), spec.batch, spec.seq_len)
    if isinstance(task, Needle):
        problem = reach_problem(task, spec.layers, spec.config)
        if problem:
            raise Unsupported(problem)
    training = Training(case, spec, task, Recipe() if recipe is None else recipe)
    return Subject(
        run=training.run,
        check=training.check,
        work=training_work(case, training.parameters),
        version=f"{library_version()}, {torch_version()}",
        facts=training.facts,
        once=True,
        follow=training.follow,
        keep=training.keep,
    )
