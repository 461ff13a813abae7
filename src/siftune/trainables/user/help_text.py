"""The flags of a script, read from the text that `--help` prints.

argparse, click, typer, fire, simple-parsing, HfArgumentParser and jsonargparse write their help
alike: a usage line, then a line for each flag with its spellings and a placeholder for its value.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SPELLING = re.compile(r"-{1,2}[A-Za-z0-9][\w.-]*")
# A line about an option begins with its spellings; frames are typer's.
_OPTION_LINE = re.compile(r"^(?: {0,8}|[│|][\s*]*)(?P<text>-{1,2}[A-Za-z0-9].*?)[\s│|]*$")
_DESCRIPTION = re.compile(r"\s{2,}")  # separates the option from its description


@dataclass(frozen=True, slots=True)
class Flag:
    """One option of a script."""

    spellings: tuple[str, ...]  # as --learning-rate, --lr, -l
    placeholder: str = ""  # of its value, as LR; empty: a switch
    several: bool = False  # whether it takes several words
    required: bool = False
    off: str | None = None  # the spelling that turns a switch off

    @property
    def is_switch(self) -> bool:
        return not self.placeholder

    @property
    def name(self) -> str:
        """The spelling to use: the first long one."""
        return next((s for s in self.spellings if s.startswith("--")), self.spellings[0])


@dataclass(frozen=True, slots=True)
class Help:
    """The flags of a script, and its positional arguments that are required."""

    flags: tuple[Flag, ...]
    positionals: tuple[str, ...] = ()

    def find(self, parameter: str) -> Flag | None:
        """Returns the flag of a parameter: batch_size is --batch-size, --batch_size, or an alias of
        either; else the only flag with the placeholder BATCH_SIZE."""
        wanted = _plain(parameter.replace("/", "."))
        for flag in self.flags:
            if any(_plain(spelling) == wanted for spelling in flag.spellings):
                return flag
        named = [flag for flag in self.flags if _plain(flag.placeholder.lower()) == wanted]
        return named[0] if len(named) == 1 else None

    def find_off(self, parameter: str) -> str | None:
        """Returns the spelling that turns a parameter off: --no-bias, --no_bias or --disable-bias
        for bias."""
        flag = self.find(parameter)
        if flag and flag.off:
            return flag.off
        wanted = {f"{prefix}_{_plain(parameter)}" for prefix in ("no", "disable", "without")}
        for other in self.flags:
            for spelling in other.spellings:
                if other.is_switch and _plain(spelling) in wanted:
                    return spelling
        return None


def _plain(spelling: str) -> str:
    return spelling.lstrip("-").replace("-", "_")


def parse(text: str) -> Help:
    """Returns the flags in a help text; none if it shows none."""
    usage, options = _sections(text)
    required, positionals = _required(usage)
    flags = []
    for line in options:
        flag = _flag(line)
        if flag and not {"-h", "--help"} & set(flag.spellings):
            needed = flag.required or bool(required & set(flag.spellings))
            flags.append(Flag(flag.spellings, flag.placeholder, flag.several, needed, flag.off))
    return Help(tuple(_unique(flags)), positionals)


def _sections(text: str) -> tuple[str, list[str]]:
    """Returns the usage, on one line, and the lines that begin with an option."""
    paragraph = re.search(r"^\s*usage:(.*?)(?:\n\s*\n|\Z)", text, re.I | re.S | re.M)
    usage = " ".join(paragraph[1].split()) if paragraph else ""
    rest = text[paragraph.end() :] if paragraph else text
    options: list[str] = []
    for line in rest.splitlines():
        if found := _OPTION_LINE.match(line):
            options.append(found["text"])
        elif options and line.startswith(" " * 9):
            options[-1] += f"  {line.strip()}"  # its description, on a line of its own
    # fire takes positional arguments as flags too, and lists their names.
    if section := re.search(r"^POSITIONAL ARGUMENTS\n((?: .*\n)+)", rest, re.M):
        names = re.findall(r"^    (\w+)$", section[1], re.M)
        options += [f"--{name.lower()} {name}  [required]" for name in names]
    return usage, options


def _flag(line: str) -> Flag | None:
    """Reads one line, as `-b N, --batch-size N  samples per step` or `--amp / --no-amp`."""
    required = "[required]" in line
    columns = _DESCRIPTION.split(line.strip(" │|"))
    spellings: list[str] = []
    placeholder, off, several = "", None, False
    for part in _options(columns):
        match = _SPELLING.match(part)
        if match is None:
            continue
        spelling, value = match[0].rstrip("."), part[match.end() :].lstrip("+= ").strip()
        if _plain(spelling) in {f"no_{_plain(other)}" for other in spellings}:
            off = spelling
        else:
            spellings.append(spelling)
        if value:
            placeholder = placeholder or value.split()[0].strip("[]<>")
            several = several or _takes_several(value)
    # typer writes the type in a column of its own.
    types = [column.strip("<>") for column in columns[1:] if re.fullmatch(r"<\w+>", column)]
    if types and types[0] != "bool":
        placeholder = placeholder or types[0]
    return Flag(tuple(spellings), placeholder, several, required, off) if spellings else None


def _options(columns: list[str]) -> list[str]:
    """Returns the spellings in a line, each with its placeholder: those in the first column, and in
    the columns after it that begin with one."""
    heads = [columns[0], *(column for column in columns[1:] if _SPELLING.match(column))]
    separated = (re.split(r"\s+/\s+|,\s*(?=-)|\s+(?=--?[A-Za-z])", head) for head in heads)
    return [part.strip() for parts in separated for part in parts]


def _takes_several(value: str) -> bool:
    """Whether the value is several words; `[ITEM,...]` is one word, a list in brackets."""
    return value.endswith("...") or len(value.split()) > 1


def _required(usage: str) -> tuple[set[str], tuple[str, ...]]:
    """Returns the flags and the positional arguments that the usage shows without brackets."""
    text = usage
    while (shorter := re.sub(r"\[[^\[\]]*\]|\([^()]*\)", " ", text)) != text:
        text = shorter
    words = text.split()[1:]  # the first is the program
    flags: set[str] = set()
    positionals: list[str] = []
    after_flag = False
    for word in words:
        if word.startswith("-"):
            flags.add(word.partition("=")[0])
            after_flag = "=" not in word
        elif after_flag:
            after_flag = False
        elif re.fullmatch(r"[A-Za-z{][\w.,{}|-]*", word) and word not in ("OPTIONS", "ARGS"):
            positionals.append(word)
    return flags, tuple(positionals)


def _unique(flags: Iterable[Flag]) -> Iterator[Flag]:
    seen: set[str] = set()
    for flag in flags:
        if not seen & set(flag.spellings):
            seen |= set(flag.spellings)
            yield flag
