"""The command line, the same in every domain: `gen-X VERB ...`; `gen` for what crosses domains.

Options come from the dataclasses of `options` and, for `train` and `reproduce`, from the method's own `Config`: tyro
makes the flags, pydantic checks the values. Exit status: 0 done, 1 the claim falls short, 2 wrong use, 130 interrupted.
"""

import dataclasses
import inspect
import itertools
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import pydantic
import tyro
from tyro.conf import FlagConversionOff, arg

from gen_core.harness import config as configs
from gen_core.harness import recipes, registry, verbs
from gen_core.harness.errors import UsageError, nearest
from gen_core.harness.options import (
    Bounds,
    Compare,
    Data,
    Demo,
    Embed,
    Evaluate,
    List,
    ListAll,
    Predict,
    Recommend,
    Reconstruct,
    Reproduce,
    Sample,
    Train,
)
from gen_core.harness.registry import Domain

VERBS = {"list": List, "train": Train, "evaluate": Evaluate, "reproduce": Reproduce, "data": Data}
USES = {
    "embed": Embed,
    "sample": Sample,
    "reconstruct": Reconstruct,
    "recommend": Recommend,
    "predict": Predict,
}  # those of a domain's `verbs`
ABOVE = {"list": ListAll, "demo": Demo, "bounds": Bounds, "compare": Compare}


def gen() -> None:
    """Entry point of `gen`."""
    _set_up()
    sys.exit(main(None, sys.argv[1:]))


def run(domain: Domain) -> None:
    """Entry point of `gen-X`."""
    _set_up()
    sys.exit(main(domain, sys.argv[1:]))


def _set_up() -> None:
    """What has to stand before torch is imported, here and in the processes we start."""
    # torch tells torch_geometric's authors that `torch.jit.script` is deprecated; users cannot act.
    warnings.filterwarnings("ignore", module=r"torch\.jit\._script", category=FutureWarning)
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:torch.jit._script")
    # Large tensors in huge pages: a step of DGI on a million nodes takes half the time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def main(domain: Domain | None, argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        return _dispatch(domain, list(argv))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\ninterrupted; what was finished is kept. {stop}".rstrip(), file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:  # tyro's own: 0 after --help, 2 after a wrong flag
        return stop.code if isinstance(stop.code, int) else 2


def _dispatch(domain: Domain | None, argv: list[str]) -> int:
    prog = domain.command if domain else "gen"
    shapes: Mapping[str, Any] = VERBS | {verb: USES[verb] for verb in domain.verbs} if domain else ABOVE
    about = domain.summary if domain else "Generative and contrastive representation learning: what is installed here."
    if not argv or argv[0] not in shapes:
        if argv and not argv[0].startswith("-"):
            raise UsageError(nearest(argv[0], shapes, "verb"))
        tyro.extras.subcommand_cli_from_dict(dict(shapes), prog=prog, description=about, args=argv or ["--help"])
        return 0
    verb, rest = argv[0], argv[1:]
    if domain is None:
        options = _parse(f"{prog} {verb}", shapes[verb], rest)
        if verb == "list":
            found = registry.domains()
            if not found:
                print("no domain is installed; install gen-vision, gen-graph, gen-rl, gen-rec or gen-zsl")
            return max((verbs.list_(domain, options) for domain in found.values()), default=0)
        if verb == "bounds":
            from gen_core.harness import bounds

            return bounds.bounds(options)
        from gen_core.harness import demo

        return demo.demo(options) if verb == "demo" else demo.compare(options)
    if verb == "reproduce" and "--help" not in rest:
        from gen_core.harness import reproduce

        reproduce.context([domain])  # its imports run beside ours
    if verb in ("train", "reproduce"):
        method, options, overrides = _parse_with_config(domain, verb, shapes[verb], rest)
        return (verbs.train if verb == "train" else verbs.reproduce)(domain, options, method, overrides)
    action = {"list": verbs.list_}.get(verb) or getattr(verbs, verb)
    return action(domain, _parse(f"{prog} {verb}", shapes[verb], rest))


def _parse(prog: str, shape: Any, argv: list[str]) -> Any:
    if {"-h", "--help"} & set(argv):
        argv = ["--help"]  # alone, since tyro leaves out of the help what was given beside it
    return tyro.cli(shape, prog=prog, description=shape.__doc__, args=argv)


def _parse_with_config(
    domain: Domain, verb: str, shape: Any, argv: list[str], target: str | None = None
) -> tuple[str, Any, dict[str, Any]]:
    """Options, and those of the method's fields that a file or a flag sets.

    The method is known only from the words themselves, its fields only from the method: the target is found first, then
    tyro parses everything at once, so that help and errors cover both kinds of flags.
    """
    prog = f"{domain.command} {verb}"
    target = target or next((word for word in argv if word.partition("/")[0] in domain.methods), None)
    if target is None:
        first = next((word for word in argv if not word.startswith("-")), "")
        if argv and argv[0] == first and first:
            raise UsageError(nearest(first.partition("/")[0], domain.methods, f"{domain.command} method"))
        options = _parse(prog, _with_data_options(domain, shape), argv)
        if not (getattr(options, "resume", None) or getattr(options, "check", None)):
            raise UsageError(f"{prog} needs a method: {', '.join(domain.methods) or 'this domain has none yet'}")
        return "", options, {}
    method = target.partition("/")[0]
    cls = domain.method(method)
    if "bound" not in cls.Config.model_fields and _value(argv, "--bound"):
        having = [name for name in domain.methods if "bound" in domain.method(name).Config.model_fields]
        raise UsageError(f"--bound: {method} has none to choose; methods that have: {', '.join(having) or 'none'}")
    plain, shape = shape, _with_data_options(domain, shape)
    if issubclass(shape, Train):
        shape = _with_stages(domain, target, cls, shape, argv)
    base = _recipe_config(domain, verb, target, argv)
    file = _value(argv, "--config")
    below = base | (configs.read_toml(Path(file)) if file else {})
    start = configs.parse(cls.Config, below, file or f"recipe {target}")
    combined = dataclasses.make_dataclass(
        shape.__name__,
        [("fields_", Annotated[FlagConversionOff[cls.Config], arg(name="")], field(default_factory=lambda: start))],
        bases=(shape,),
        kw_only=True,
    )
    combined.__doc__ = f"{shape.__doc__}\n\n{inspect.getdoc(cls) or ''}"
    try:
        options = _parse(prog, combined, argv)
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(configs.complaints(cls.Config, error, "command line"))) from None
    if options.target != target:  # a flag's value looked like it
        if options.target.partition("/")[0] not in domain.methods:
            raise UsageError(nearest(options.target.partition("/")[0], domain.methods, f"{domain.command} method"))
        return _parse_with_config(domain, verb, plain, argv, options.target)
    recipe = configs.parse(cls.Config, base, f"recipe {target}").model_dump()
    overrides = {key: value for key, value in options.fields_.model_dump().items() if value != recipe[key]}
    return method, options, overrides


def _value(argv: list[str], flag: str) -> str | None:
    """What a flag is set to, before its parser can be made."""
    spaced = (value for word, value in itertools.pairwise(argv) if word == flag)
    joined = (word.removeprefix(flag + "=") for word in argv if word.startswith(flag + "="))
    return next(itertools.chain(spaced, joined), None)


def _with_data_options(domain: Domain, shape: Any) -> Any:
    if shape is not Train or not domain.data_options:
        return shape
    options = domain.data_options.items()
    extra = [(name, Annotated[str | None, arg(help=text)], field(default=None)) for name, text in options]
    return _extended(shape, extra)


def _extended(shape: Any, fields: list[Any]) -> Any:
    """The options with further fields."""
    made = dataclasses.make_dataclass(shape.__name__, fields, bases=(shape,), kw_only=True)
    made.__doc__ = shape.__doc__
    return made


def _with_stages(domain: Domain, target: str, cls: Any, shape: Any, argv: list[str]) -> Any:
    """`--given.PART` for each part of the method that is one itself, and `--given.PART.FIELD` unless it is a run."""
    from gen_core.harness import stages

    text = "a run folder, or a method[/recipe] (default: the recipe's)"
    more: list[Any] = []
    for name in recipes.stage_names(cls):
        start = verbs.stages_of(domain, target, _value(argv, "--data"))
        more.append((f"given_{name}", Annotated[str | None, arg(name=f"given.{name}", help=text)], field(default=None)))
        stage = stages.chosen(domain, _value(argv, f"--given.{name}"), start.get(name))
        if stage is not None and stage.run is None:
            plain = _unchecked(domain.method(stage.method).Config(**stage.config))
            hint = Annotated[FlagConversionOff[plain], arg(name=f"given.{name}")]
            more.append((f"given_{name}_fields", hint, field(default_factory=plain)))
    return _extended(shape, more) if more else shape


def _unchecked(config: configs.Config) -> Any:
    """A dataclass of a config's fields and values: tyro would check a nested model itself, with a long message."""
    fields: list[Any] = []
    for name, info in type(config).model_fields.items():
        hint = Annotated[info.annotation, arg(help=info.description or "")]  # pyright: ignore
        fields.append((name, hint, field(default=getattr(config, name))))
    return dataclasses.make_dataclass(type(config).__qualname__.replace(".", ""), fields, kw_only=True)


def _recipe_config(domain: Domain, verb: str, target: str, argv: list[str]) -> dict[str, Any]:
    if verb == "reproduce":
        return recipes.load(domain, target)[1].config
    found = verbs.recipe_of(domain, target, _value(argv, "--data"))
    return found[1].config if found else {}
