"""`k8snet completion SHELL`: prints a script that completes commands, options and the cluster's names.

The script asks `k8snet __complete` at each Tab. The answer is a line that says what kind of answer it is (`words`,
`nospace`: the word goes on, `files`: names of files), then a word a line. What the command line knows is taken from its
parser; names come from the inventory on the line, from $K8SNET_INVENTORY, or from the API, in that order.

No answer is ever evaluated by the shell, and no word is offered that would mean something to it.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k8snet.errors import Exit, K8snetError

if TYPE_CHECKING:
    from k8snet.cluster.inventory import Inventory

_LARGEST: Final = 32 << 20  # a guess: bytes of an inventory that are worth the wait at each Tab
_PATIENCE: Final = 2.0  # seconds; a guess: so long may the API take

_BASH: Final = r"""# k8snet completion for bash:  source <(k8snet completion bash)
_k8snet() {
    local -a answer
    # Readline cuts words at ':' and '=', which names and options have: the line is handed over as it is.
    mapfile -t answer < <(k8snet __complete --breaks "$COMP_WORDBREAKS" --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    COMPREPLY=("${answer[@]:1}")
    case "${answer[0]}" in
        nospace) compopt -o nospace ;;
        files) compopt -o default ;;
    esac
}
complete -F _k8snet k8snet
"""
_ZSH: Final = r"""#compdef k8snet
# k8snet completion for zsh:  source <(k8snet completion zsh)
_k8snet() {
    local -a answer
    answer=("${(@f)$(k8snet __complete -- "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    case "$answer[1]" in
        words) compadd -- "${(@)answer[2,-1]}" ;;
        nospace) compadd -S '' -- "${(@)answer[2,-1]}" ;;
        files) _files ;;
    esac
}
if [ "$funcstack[1]" = "_k8snet" ]; then _k8snet "$@"; else compdef _k8snet k8snet; fi
"""
_FISH: Final = r"""# k8snet completion for fish:  k8snet completion fish | source
function __k8snet_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    set -l answer (k8snet __complete -- $words[2..-1] "$current" 2>/dev/null)
    switch "$answer[1]"
        case files
            __fish_complete_path "$current"
        case '*'
            printf '%s\n' $answer[2..-1]
    end
end
complete -c k8snet -f -a '(__k8snet_complete)'
"""
SCRIPTS: Final = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `completion` to the command line."""
    parser = commands.add_parser(
        "completion",
        help="print a script for completion in bash, zsh or fish",
        description="Print a script that completes commands, options and the cluster's names. Names come from "
        "--inventory on the line, or else from the file that $K8SNET_INVENTORY names, or else from the API.",
        epilog="to try it: source <(k8snet completion bash)",
    )
    parser.add_argument("shell", choices=tuple(SCRIPTS))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> Exit:
    """Print the script."""
    print(SCRIPTS[args.shell], end="")
    return Exit.OK


def answer(commands: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Print what the scripts ask for: `-- WORD...`, or `--breaks CHARACTERS --line LINE` for readline."""
    asked = argparse.ArgumentParser(prog="k8snet __complete")
    asked.add_argument("--line")
    asked.add_argument("--breaks", default="")
    asked.add_argument("words", nargs="*")
    args = asked.parse_args(arguments)
    words = args.words if args.line is None else _split(args.line)
    kind, found = candidates(commands, words or [""])
    if args.line is not None and words:
        # Readline puts the answer in the place of what stands behind the last break.
        known = max((words[-1].rfind(mark) + 1 for mark in args.breaks if mark in ":="), default=0)
        found = [word[known:] for word in found]
    print("\n".join([kind, *found]))


def _split(line: str) -> list[str]:
    """The words of a command line up to the cursor, without the command's own; [] while a quote is open."""
    try:
        words = shlex.split(line)[1:]
    except ValueError:
        return []
    return [*words, ""] if line[-1:].isspace() or not words else words


def candidates(parser: argparse.ArgumentParser, words: Sequence[str]) -> tuple[str, list[str]]:
    """What the last of `words` can become, and what kind of answer it is: words, nospace or files."""
    *before, current = words
    waiting: argparse.Action | None = None
    for word in before:
        options, commands = _options(parser), _commands(parser)
        if waiting is None and word in commands:
            parser = commands[word]
            continue
        option = options.get(word) if waiting is None else None
        waiting = option if option is not None and option.nargs != 0 else None
    if waiting is not None:
        return _values(waiting, current, words)
    option_text, equals, begun = current.partition("=")
    if equals and (option := _options(parser).get(option_text)) and option.nargs != 0:
        kind, found = _values(option, begun, words)
        return kind, [f"{option_text}={word}" for word in found]
    if current.startswith("-"):
        return "words", sorted(text for text in _options(parser) if text.startswith(current))
    if commands := _commands(parser):
        return "words", _beginning(current, commands)
    for action in parser._actions:
        if not action.option_strings:
            return _values(action, current, words)
    return "words", []


def _options(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {text: action for action in parser._actions for text in action.option_strings}


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _values(option: argparse.Action, begun: str, words: Sequence[str]) -> tuple[str, list[str]]:
    """What the option, or the argument, can be."""
    if option.choices is not None:
        return "words", _beginning(begun, map(str, option.choices))
    match option.dest:
        case "from_" | "to" | "pods":
            from k8snet.cluster.complete import complete

            inventory, namespace = inventory_for(words, begun)
            found = complete(begun, inventory, namespace, client=option.dest != "to")
            return ("nospace" if found and all(word.endswith("/") for word in found) else "words"), found
        case "namespace":
            from k8snet.cluster.complete import namespaces

            return "words", namespaces(begun, inventory_for(words[:-1])[0])
        case "until":
            from k8snet.cli.watch import codes

            return "words", _beginning(begun, codes())
        case "scenario":
            from k8snet.lab.scenarios import SCENARIOS

            return "words", _beginning(begun, (scenario.name for scenario in SCENARIOS))
    return ("files" if option.metavar == "FILE" else "words"), []


def _beginning(begun: str, known: Iterable[str]) -> list[str]:
    return sorted(word for word in known if word.startswith(begun))


def inventory_for(words: Sequence[str], begun: str = "") -> tuple[Inventory, str | None]:
    """The cluster that a command line is about, as far as `begun` needs it, and the namespace of names without one.

    Empty when it cannot be known soon; silent in any case.
    """
    from k8snet.cluster.file import load
    from k8snet.cluster.inventory import Inventory

    namespace = _given(words, "-n", "--namespace")
    text = _given(words, "--inventory") or os.environ.get("K8SNET_INVENTORY", "")
    path = Path(os.path.expanduser(text))  # noqa: PTH111 (Path's own raises for a user that there is not)
    try:
        if text and text != "-" and path.is_file() and path.stat().st_size <= _LARGEST:
            return load(path), namespace
        if not text and "--no-api" not in words:
            return _asked(words, begun, namespace)
    except (K8snetError, OSError, ValueError):  # ValueError: a null byte in it
        pass
    return Inventory(), namespace


def _asked(words: Sequence[str], begun: str, namespace: str | None) -> tuple[Inventory, str | None]:
    """The same from the API: what lies in the namespace that was written, or, while none was, in the first of all."""
    from k8snet.cluster.api import Api
    from k8snet.cluster.inventory import Inventory
    from k8snet.cluster.kubeconfig import Options, access
    from k8snet.cluster.needs import Wish
    from k8snet.cluster.spelling import parse
    from k8snet.cluster.watch import Cluster

    options = Options(_given(words, "--kubeconfig"), _given(words, "--context"), _PATIENCE, _given(words, "--as"))
    found = access(options)
    if found is None:
        return Inventory(), namespace
    own = namespace or found.namespace
    # Any name will do for what has only been begun: it is the namespace and the kind that count.
    name = parse(begun.rpartition(":")[0] if ":" in begun else f"{begun.rpartition('/')[0]}/x".lstrip("/"))
    wish = Wish(server=name, namespace=own if "/" in begun or namespace else None, wide=True)
    with Cluster(Api(options, found), wish, once=True) as cluster:
        cluster.load(_PATIENCE)
        return cluster.inventory, own


def _given(words: Sequence[str], *options: str) -> str | None:
    """The value that one of these options has on the line."""
    for number, word in enumerate(words[:-1]):
        if word in options:
            return words[number + 1]
        name, equals, value = word.partition("=")
        if equals and name in options:
            return value
    return None
