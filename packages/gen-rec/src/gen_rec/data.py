"""Interactions in time order: registered ones and the user's own, always as one `Interactions`.

Item i is column i of every score; 0 is padding. Split: of each user the last 201 items are kept, and of these n the
last int(0.2 n), at least 1, are the test part.

Rules for the user's own csv: columns user, item and, where there is one, timestamp, in any order; others are ignored.
Rows are sorted by timestamp, user by user, and equal ones keep the order of the file; without timestamps the order of
the file is the order in time. Of a repeated (user, item) the first counts. Users with fewer than 3 items are left out.
"""

import csv
import hashlib
import io
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gen_core.harness.data import missing, root
from gen_core.harness.errors import UsageError, nearest
from gen_rec.registry import DOMAIN

KEPT = 201
"""Items of a user that are kept, the last ones."""
FEWEST = 3
"""Items that a user of an own file must have."""
PINNED = {
    "acvae-ml-latest": "44706518997b34f2799c707f0ee675f588d7c695b3e89bcad350b9ed2639f308",
    "ml-100k": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
}
"""sha256 of the files."""


@dataclass(frozen=True)
class Interactions:
    """Each user's items in time order, in two parts; part p of user u is `p_items[p_offsets[u] : p_offsets[u + 1]]`."""

    users: tuple[str, ...]
    """(U,) names."""
    items: tuple[str, ...]
    """(I + 1,) names; the first is that of the padding, ""."""
    train_items: Tensor
    """int64, values in 1..I."""
    train_offsets: Tensor
    """(U + 1,) int64."""
    test_items: Tensor
    """int64, what each user took next; none where a user trains only."""
    test_offsets: Tensor
    """(U + 1,) int64."""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            flat, offsets = getattr(self, f"{part}_items"), getattr(self, f"{part}_offsets")
            ends = offsets[[0, -1]].tolist() if offsets.shape == (len(self.users) + 1,) else None
            if ends != [0, len(flat)] or bool((offsets.diff() < 0).any()):
                raise UsageError(
                    f"{part}_offsets must rise from 0 to {len(flat)} in {len(self.users)} steps, one a user"
                )
            outside = (flat < 1) | (flat >= len(self.items))
            if bool(outside.any()):
                place, allowed = int(outside.nonzero()[0]), f"1..{len(self.items) - 1}"
                raise UsageError(f"{part}_items, place {place}: item {int(flat[place])}; allowed: {allowed}")

    @property
    def train(self) -> list[Tensor]:
        """Each user's train part, (n_u,)."""
        return _cut(self.train_items, self.train_offsets)

    @property
    def test(self) -> list[Tensor]:
        """Each user's test part."""
        return _cut(self.test_items, self.test_offsets)


def load(name_or_path: str | Path) -> Interactions:
    """A registered data set by name, or the user's own `interactions.csv` by path.

    Raises `UsageError` that names the file and the column, row and value.
    """
    name = str(name_or_path)
    if name in DOMAIN.datasets:
        loaders = {"catalogue": catalogue, "acvae-ml-latest": ml_latest, "ml-100k": ml_100k}
        return hold_out(ml_latest()) if name == "acvae-ml-latest-validation" else loaders[name]()
    path = Path(name_or_path).expanduser()
    if path.suffix != ".csv" or not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist" if not path.exists() else "is no .csv"
        known = nearest(name, DOMAIN.datasets, "data set")
        raise UsageError(f"{path} {found}: give a .csv with columns user, item, timestamp; {known}")
    return _from_csv(path)


def spec(data: Interactions) -> dict[str, int]:
    """Sizes: items, without padding."""
    return {"items": len(data.items) - 1}


def checksum(data: Interactions) -> str:
    """sha256 over names, sequences and split."""
    digest = hashlib.sha256("\0".join((*data.users, "\1", *data.items)).encode())
    for tensor in (data.train_items, data.train_offsets, data.test_items, data.test_offsets):
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def ids(data: Interactions) -> list[str]:
    """The users' names."""
    return list(data.users)


def fingerprint(data: Interactions) -> Tensor:
    """The item names in one int64, (): a model refuses data whose columns are other items."""
    return torch.tensor(int.from_bytes(hashlib.sha256("\0".join(data.items).encode()).digest()[:7]))


def split(users: Sequence[str], items: Sequence[str], sequences: Sequence[Sequence[int]]) -> Interactions:
    """`Interactions` of whole sequences in time order, by the rule of the module's head."""
    kept = [torch.tensor(sequence[-KEPT:], dtype=torch.int64) for sequence in sequences]
    return _parts(users, items, [(row, max(1, int(0.2 * len(row)))) for row in kept])


def hold_out(data: Interactions) -> Interactions:
    """The train parts alone: of each n items the last int(0.1 n), at least 1, become its test part.

    A user with a single item keeps it and has no test part.
    """
    return _parts(data.users, data.items, [(row, max(1, int(0.1 * len(row)))) for row in data.train])


def pad(sequences: Sequence[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """The last `length` items of each sequence, padded with 0 on the right, (n, L), and their numbers, (n,)."""
    cut = [sequence[-length:] for sequence in sequences]
    lengths = torch.tensor([len(row) for row in cut], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(cut, batch_first=True), lengths


def _cut(flat: Tensor, offsets: Tensor) -> list[Tensor]:
    return list(flat.split(offsets.diff().tolist()))


def _parts(users: Sequence[str], items: Sequence[str], rows: Sequence[tuple[Tensor, int]]) -> Interactions:
    held = [min(count, len(row) - 1) if len(row) else 0 for row, count in rows]
    train = [row[: len(row) - count] for (row, _), count in zip(rows, held, strict=True)]
    test = [row[len(row) - count :] for (row, _), count in zip(rows, held, strict=True)]
    return Interactions(tuple(users), tuple(items), torch.cat(train), _offsets(train), torch.cat(test), _offsets(test))


def _offsets(parts: Sequence[Tensor]) -> Tensor:
    return torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)


# --- registered ------------------------------------------------------------------------------------------------------


def catalogue() -> Interactions:
    """Users who follow series, made by a fixed seed: taste differs by user, order lies in the series.

    300 items are 20 series of 15 episodes. Each user follows 4 series, drawn at random, from random episodes on, and
    makes 20 to 60 steps. A step stays with the last series with probability 0.2, else it goes to any of the user's
    four; there it takes the next episode not yet seen (the first comes after the last), and skips one with probability
    0.2. With probability 0.1 a step is any item instead, drawn with weights 1 / rank. Nothing is taken twice; a step in
    a finished series is left out.

    So an item tells the next of its series, and only the past as a whole tells which series a user follows and how far
    in each. Popularity sees neither.
    """
    draw = random.Random(0).random  # its stream is the same in every version of Python
    series, episodes, follows = 20, 15, 4
    count = series * episodes

    def one_of(n: int) -> int:
        return int(draw() * n)

    total = sum(1 / rank for rank in range(1, count + 1))
    sequences: list[list[int]] = []
    for _ in range(600):
        own: list[int] = []
        while len(own) < follows:
            if (candidate := one_of(series)) not in own:
                own.append(candidate)
        place = {s: one_of(episodes) for s in own}
        current, seen = own[0], dict[int, None]()
        for _ in range(20 + one_of(41)):
            if draw() < 0.1:
                level, item = draw() * total, 0
                while item < count and level > 0:
                    item += 1
                    level -= 1 / item
                item = (item * 7) % count  # popular items lie in all series
            else:
                if draw() >= 0.2:
                    current = own[one_of(follows)]
                place[current] += 1 + (draw() < 0.2)
                left = [e for e in range(episodes) if current * episodes + (place[current] + e) % episodes not in seen]
                if not left:
                    continue
                place[current] = (place[current] + left[0]) % episodes
                item = current * episodes + place[current]
            seen[item] = None
        sequences.append([item + 1 for item in seen])
    names = ["", *(f"series{s:02}-{e + 1:02}" for s in range(series) for e in range(episodes))]
    return split([f"u{user:03}" for user in range(len(sequences))], names, sequences)


def ml_latest() -> Interactions:
    """MovieLens as published with the official ACVAE code; 7,363 items are its count, 6,344 of them occur."""
    rows = [line.split() for line in _pinned("acvae-ml-latest").splitlines()]
    sequences: dict[str, list[int]] = {}
    for user, item in rows:
        sequences.setdefault(user, []).append(int(item))
    return split(list(sequences), ["", *(str(item) for item in range(1, 7364))], list(sequences.values()))


def ml_100k() -> Interactions:
    """MovieLens 100k as RecBole ships it: every rating is an interaction; equal timestamps keep the file's order."""
    table = pd.read_csv(io.StringIO(_pinned("ml-100k")), sep="\t", dtype=str)
    frame = pd.DataFrame({name: table[f"{name}_id:token"] for name in ("user", "item")})
    return _ordered(frame.assign(timestamp=table["timestamp:float"].astype(float)))


def _pinned(name: str) -> str:
    """The text of a registered file, where its digest is the pinned one."""
    entry = DOMAIN.datasets[name]
    path = entry.located(root())
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise missing(name, path, entry.how) from None
    except OSError as error:
        raise UsageError(f"{path} is not readable: {error}") from None
    if (found := hashlib.sha256(content).hexdigest()) != PINNED[name]:
        raise UsageError(f"{path}: sha256 {found}, expected {PINNED[name]}; the file is damaged or not the original")
    return content.decode()


# --- the user's own --------------------------------------------------------------------------------------------------


def _from_csv(path: Path) -> Interactions:
    frame = _read(path)
    lines = frame.pop("line")
    for column in ("user", "item"):
        if (empty := frame[column] == "").any():
            raise UsageError(f"{path}, column {column}, row {lines[empty].iloc[0]}: '' is empty; expected a name")
    if "timestamp" in frame:
        number: Any = pd.to_numeric(frame["timestamp"], errors="coerce")
        bad = number.isna() | number.abs().eq(float("inf"))
        if bad.any():
            where = f"{path}, column timestamp, row {lines[bad].iloc[0]}"
            raise UsageError(f"{where}: {frame['timestamp'][bad].iloc[0]!r}; expected a finite number, such as seconds")
        frame["timestamp"] = number
    data = _ordered(frame, str(path))
    if len(data.users) < 2:
        raise UsageError(
            f"{path}: one user only ({next(iter(data.users))!r}); allowed: at least 2 with {FEWEST} items each"
        )
    return data


def _read(path: Path) -> Any:
    # Texts of the columns that we know, and `line`, the line of each row in the file.
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if not header:
                raise UsageError(f"{path} is empty: expected a header with the columns user, item, timestamp")
            known = [name for name in ("user", "item", "timestamp") if name in header]
            for name in ("user", "item"):
                if header.count(name) != 1:
                    state, found = "stands twice" if name in header else "is missing", ", ".join(header)
                    raise UsageError(f"{path}: column {name} {state}; found: {found}; allowed: user, item, timestamp")
            places = [header.index(name) for name in known]
            rows: list[list[Any]] = []
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                if len(row) != len(header):
                    raise UsageError(f"{path}, row {reader.line_num}: {len(row)} columns; the header has {len(header)}")
                rows.append([*(row[place].strip() for place in places), reader.line_num])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not readable: {error}") from None
    if not rows:
        raise UsageError(f"{path} holds a header and no interaction")
    return pd.DataFrame(rows, columns=pd.Index([*known, "line"]))


def _ordered(frame: Any, where: str = "") -> Interactions:
    """Sort, drop repetitions and short users, number, split. With `where`, say on stderr what was dropped."""
    if "timestamp" in frame:
        frame = frame.sort_values("timestamp", kind="stable")
    repeated = frame.duplicated(["user", "item"])
    frame = frame[~repeated]
    counts = frame["user"].map(frame["user"].value_counts())
    short = frame["user"][counts < FEWEST].nunique()
    frame = frame[counts >= FEWEST]
    if where and repeated.any():
        print(f"{where}: {repeated.sum()} repeated (user, item) rows dropped, the first of each kept", file=sys.stderr)
    if frame.empty:
        kinds = "one item only" if counts.max() == 1 else f"no user has {FEWEST} different items"
        raise UsageError(f"{where}: {kinds}; allowed: at least 2 users with {FEWEST} items each")
    if where and short:
        print(f"{where}: {short} users with fewer than {FEWEST} items left out", file=sys.stderr)
    items = ["", *sorted(frame["item"].unique())]
    number = {item: place for place, item in enumerate(items)}
    groups = frame["item"].map(number).groupby(frame["user"], sort=False).agg(list)
    users = sorted(groups.index)
    return split(users, items, [groups[user] for user in users])
