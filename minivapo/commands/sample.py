"""`minivapo sample`: shows responses of a run or model."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from minivapo.commands.arguments import fit_prompts, load_task, resolve_source, sampling_only, set_threads
from minivapo.options.fields import Count, NotNegative, PositiveFraction
from minivapo.options.parse import TaskOptions, task_options


@dataclass(frozen=True)
class Arguments:
    """Show some responses of a run or model to held-out problems, right and wrong."""

    source: Annotated[str, tyro.conf.Positional]
    """Run folder, transformers folder, or hub name."""
    task: str | None = None
    """Task; default: the run's, or chain."""
    count: Count = 6
    """Problems to show."""
    temperature: NotNegative = 1.0
    """Sampling temperature; 0 is greedy."""
    top_p: PositiveFraction = 0.7
    """Top-p."""
    seed: int = 0
    """Sampling seed."""
    show_prompt: bool = False
    """Print each prompt exactly as the policy sees it, with its token count."""
    template: str | None = None
    """Prompt template of mathematics tasks: base or chat."""
    task_option: TaskOptions = ()
    """Option of the task, as for train."""


def run(args: Arguments) -> int:
    """Samples one response for each problem and prints it with its verdict."""
    from rich.console import Console
    from rich.text import Text

    from minivapo.loading import load_tokenizer
    from minivapo.local import LocalEngine
    from minivapo.probe import PROBLEMS, probe
    from minivapo.responses import Draw, held_out_problems, respond

    source = resolve_source(args.source, args.task, task_options(args.task_option, args.template))
    config = source.config
    task, model = load_task(source.task, source.task_options, source.model, config.max_prompt_tokens)
    problems = held_out_problems(task, args.count)
    config = fit_prompts(config, load_tokenizer(model), problems)
    engine = LocalEngine(model, sampling_only(config), stop=(*task.stop, *source.stop))
    set_threads(0, engine)
    probe(engine, problems[:PROBLEMS], config)
    draw = Draw(
        n=1, seed=args.seed, version=0, max_prompt_tokens=config.max_prompt_tokens, timeout=config.verifier_timeout,
        temperature=args.temperature, top_p=args.top_p,
    )  # fmt: skip
    console = Console()
    for r in respond(task, problems, engine.tokenizer, engine.sampler, draw):
        mark = {True: "right", False: "wrong", None: "verifier failed"}[r.verdict]
        end = "" if r.sample.terminated else ", cut by the length limit"
        if args.show_prompt:
            console.print(Text(f"prompt ({len(r.prompt)} tokens): {engine.tokenizer.decode(r.prompt)!r}"))
        else:
            console.print(Text(r.problem.prompt, style="bold"))
        console.print(Text(r.text))
        style = "green" if r.verdict else "red"
        console.print(Text(f"→ {mark}{end}; the answer is {r.problem.answer}\n", style=style))
    return 0
