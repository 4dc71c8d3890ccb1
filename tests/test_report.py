"""Reports: what the folder holds, that the numbers shown are those given, and that what is wrong comes first."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import ase
import numpy as np
import pytest
from toy_data import toy_frames

from ase_mlip.dataset import LabelKeys
from ase_mlip.evaluate import Errors
from ase_mlip.report import (
    FileRecord,
    LevelErrors,
    ReferenceEnergy,
    Report,
    findings,
    headline,
    installed_versions,
    methods_sentence,
    write_report,
)
from ase_mlip.report.charts import Axis, Frame, tick_text
from ase_mlip.report.text import change, number
from ase_mlip.stability import DimerScan, NveResult

VOID = {"meta", "br"}


def errors_of(frames: list[ase.Atoms], offset: float, stress: bool = True) -> Errors:
    """Predictions that are off by the same amount everywhere: energies by `offset`, forces and stress by multiples."""
    energy = np.array([atoms.get_potential_energy() / len(atoms) for atoms in frames])
    forces = np.concatenate([atoms.get_forces().ravel() for atoms in frames])
    sign = np.where(np.arange(len(forces)) % 2, 1, -1)
    tensor = np.concatenate(
        [atoms.get_stress(voigt=False).ravel() for atoms in frames][: None if stress else 0] or [[]]
    )
    pairs = ([energy, energy + offset], [forces, forces + 10 * offset * sign], [tensor, tensor + offset / 100])
    return Errors(*(np.array(pair) for pair in pairs), len(frames))


@pytest.fixture(scope="module")
def frames() -> list[ase.Atoms]:
    """Twelve frames of two compositions."""
    return toy_frames(12)


def run(broke: str | None = None, slope: float = 1e-5) -> NveResult:
    times = np.linspace(0, 1, 1001)
    return NveResult(times, -20 + slope * times, np.full(1001, 301.0), broke, "H2O", 0.5)


def scan(pair: tuple[str, str], end: float = 0.0) -> DimerScan:
    """A well of 6 eV at 1.2 Angstrom with a wall that falls again below `end`."""
    r = np.linspace(0.5, 2.6, 85)
    energies = 6 * ((1.2 / r) ** 8 - 2 * (1.2 / r) ** 4)
    top = int(np.argmax(r >= end))
    return DimerScan(pair, r, np.where(r < end, energies[top] - 90 * (r[top] - r), energies))


def history(losses: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": 2 * n,
            "step": 10 * n,
            "train_loss": None if n == 0 else loss,
            "valid_loss": loss,
            "energy_mae": 0.01 * loss,
            "forces_mae": 0.1 * loss,
            "levels": {"base": {"energy_mae": 0.02, "forces_mae": 0.3}},
        }
        for n, loss in enumerate(losses)
    ]


@pytest.fixture(scope="module")
def report(frames: list[ase.Atoms]) -> Report:
    """Everything a report can hold, and nothing wrong with it."""
    before, after = errors_of(frames, 0.0125), errors_of(frames, 0.00321)
    kept = errors_of(frames, 0.00777)
    return Report(
        title="Water <at> ωB97M & more",
        method="lora",
        levels=(
            LevelErrors.of("new", "validation", after, before, structures=frames),
            LevelErrors.of("base", "replay", kept, kept, kept=True),
        ),
        history=history([3.0, 1.0, 2.0]),
        settings={"epochs": 7, "rank": 8, "loss": {"energy": 100.0, "forces": 1.5}, "folder": None},
        files=(FileRecord("base", "old.safetensors", "ab" * 32), FileRecord("training", "h2o.xyz", "cd" * 32, 50)),
        reference_energies=(ReferenceEnergy("H", -3.0, -0.25), ReferenceEnergy("O", -7.0, 1.125)),
        reference_rank=2,
        nve=(run(slope=2e-5), run()),
        dimers=([scan(("H", "O")), scan(("O", "O"))], [scan(("H", "O")), scan(("O", "O"))]),
        trainable=12345,
        parameters=41000,
        seconds=754.0,
        versions={"ase_mlip": "0.1.0", "jax": "0.9", "device": "cpu"},
        date="2026-03-01",
    )


@dataclass
class Page(HTMLParser):
    """Text and attributes of a page, its tags checked for balance."""

    def __init__(self, html: str):
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value) for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(report: Report, folder: Path) -> tuple[str, Page]:
    html = write_report(folder, report).read_text(encoding="utf-8")
    return html, Page(html)


def warnings_of(report: Report) -> str:
    return "\n".join(finding.text for finding in findings(report) if finding.severity == "warning")


def test_the_folder(report: Report, frames: list[ase.Atoms], tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report", report)
    assert path == tmp_path / "new" / "report" / "report.html"
    assert {file.name for file in path.parent.iterdir()} == {"report.html", "report.json"}
    data = json.loads((path.parent / "report.json").read_text(encoding="utf-8"))
    new, base = data["levels"]
    assert (new["level"], new["count"], new["kept"], base["kept"]) == ("new", 12, False, True)
    assert new["before"]["energy_mae"] == pytest.approx(0.0125)
    assert new["after"]["forces_mae"] == pytest.approx(0.0321)
    assert new["after"]["stress_mae"] == pytest.approx(3.21e-5)
    assert [group["name"] for group in new["elements"]] == ["H", "O"]
    assert data["history"] == report.history
    assert data["kept"]["epoch"] == 2
    assert data["reference_energies"][1] == {"element": "O", "before": -7.0, "correction": 1.125}
    assert data["nve"]["result"]["drift"] == pytest.approx(0.01)
    assert data["nve"]["base"]["drift"] == pytest.approx(0.02)
    assert len(data["nve"]["result"]["energy"]) <= 400
    assert data["dimers"]["result"][0]["pair"] == ["H", "O"]
    assert data["dimers"]["result"][0]["energies"] == report.dimers[1][0].energies.tolist()
    assert data["settings"] == {"epochs": 7, "rank": 8, "loss.energy": 100.0, "loss.forces": 1.5, "folder": None}
    assert data["methods_sentence"] == methods_sentence(report)
    assert (data["trainable"], data["parameters"], data["seconds"]) == (12345, 41000, 754.0)
    assert {finding["severity"] for finding in data["findings"]} == {"good"}


def test_the_page_is_whole_and_needs_nothing_else(report: Report, tmp_path: Path) -> None:
    html, page = page_of(report, tmp_path)
    assert html.startswith("<!doctype html>")
    assert "Water <at> ωB97M & more" in page.words
    assert "<script" not in html
    assert not [a for a in page.attributes if a[1] in ("src", "href", "xlink:href", "srcset", "data", "action")]
    assert not re.search(r"url\(|@import|https?:", html)
    drawings = re.findall(r'<svg class="chart".*?</svg></svg>', html, re.DOTALL)
    assert len(drawings) == 3 + 2 * 6 + 2 + 2  # curves, parity and errors of two levels, dynamics, dimers
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        assert tree.get("aria-label")
        assert not re.search("nan|inf", drawing, re.IGNORECASE)


def test_numbers_shown_are_those_given(report: Report, tmp_path: Path) -> None:
    words = page_of(report, tmp_path)[1].words
    for shown in (
        "energy 12.5 → 3.21 meV/atom 3.9× smaller",
        "forces 125 → 32.1 meV/Å 3.9× smaller",
        "stress 0.125 → 0.0321 meV/Å³ 3.9× smaller",
        "energy 7.77 → 7.77 meV/atom unchanged",
        "12,345 of 41,000 parameters trained",
        "12 min 34 s",
        "50 training frames",
        "H −3.0000 −0.2500 −3.2500",
        "O −7.0000 +1.1250 −5.8750",
        "base 0.0200 1.00 301 stable",
        "result 0.0100 1.00 301 stable",
        "epochs 7",
        "loss.forces 1.5",
        "jax 0.9",
        "ab" * 32,
        "cd" * 32,
        "2026-03-01",
        "the dots are epoch 2, which was kept",
    ):
        assert shown in words
    assert "folder" not in words  # None: left at its default


def test_errors_of_elements_and_config_types(frames: list[ase.Atoms]) -> None:
    frames = [atoms.copy() for atoms in frames[:5]]
    for atoms, original, kind in zip(frames, toy_frames(5), ["md", "md", "far", None, "far"], strict=True):
        atoms.calc = original.calc
        if kind:
            atoms.info["config_type"] = kind
    del frames[1].calc.results["forces"]
    del frames[2].calc.results["energy"]
    rng = np.random.default_rng(0)
    labels = {name: [atoms.calc.results.get(name) for atoms in frames] for name in ("energy", "forces")}
    noise = [rng.normal(size=(len(atoms), 3)) for atoms in frames]
    shift = rng.normal(size=5)
    energy = np.array(
        [[e / len(a), e / len(a) + s] for e, a, s in zip(labels["energy"], frames, shift, strict=True) if e]
    )
    forces = [
        np.stack([f.ravel(), (f + n).ravel()]) for f, n in zip(labels["forces"], noise, strict=True) if f is not None
    ]
    after = Errors(energy.T, np.concatenate(forces, axis=1), np.zeros((2, 0)), 5)
    level = LevelErrors.of("new", "validation", after, structures=frames)
    sizes: dict[str, list[float]] = {}
    for atoms, f, n in zip(frames, labels["forces"], noise, strict=True):
        for symbol, row in zip(atoms.symbols, n, strict=True):
            if f is not None:
                sizes.setdefault(symbol, []).extend(abs(row))
    assert {group.name: group.count for group in level.elements} == {s: len(v) for s, v in sizes.items()}
    for group in level.elements:
        assert group.forces == (None, pytest.approx(np.mean(sizes[group.name])))
    found = {group.name: group for group in level.config_types}
    assert {name: group.count for name, group in found.items()} == {"(none)": 1, "far": 2, "md": 2}
    assert found["md"].energy[1] == pytest.approx((abs(shift[0]) + abs(shift[1])) / 2)
    assert found["far"].energy[1] == pytest.approx(abs(shift[4]))
    assert found["md"].forces[1] == pytest.approx(np.abs(noise[0]).mean())
    with pytest.raises(ValueError, match="in that order"):
        LevelErrors.of("new", "validation", after, structures=frames[::-1])
    with pytest.raises(ValueError, match="the same keys"):
        LevelErrors.of("new", "validation", after, structures=frames, keys=LabelKeys(forces="dft"))


def test_energies_are_compared_without_what_composition_explains(frames: list[ase.Atoms]) -> None:
    level = LevelErrors.of("new", "validation", errors_of(frames, 0.01), structures=frames)
    assert level.origin is not None
    for names in ("H2O", "HO"):
        chosen = [n for n, atoms in enumerate(frames) if atoms.get_chemical_formula() == names]
        labels = [frames[n].get_potential_energy() / len(frames[n]) for n in chosen]
        assert level.origin[chosen] == pytest.approx([np.mean(labels)] * len(chosen))


def test_nothing_to_warn_of(report: Report) -> None:
    texts = [finding.text for finding in findings(report)]
    assert {finding.severity for finding in findings(report)} == {"good"}
    assert "Old knowledge is kept exactly: level 'base' on 12 replay frames." in texts
    assert "No error is larger than before the training: level 'new' on 12 validation frames." in texts
    assert "Dynamics at constant energy is stable: the energy drifts by 0.010 meV/atom/ps over 1.0 ps of H₂O." in texts
    assert "The repulsive walls of all 2 pairs of elements rise all the way in." in texts
    assert headline(report.levels[0]).startswith(
        "new on 12 validation frames: energy 12.5 → 3.21 meV/atom (3.9× smaller)"
    )


def test_warnings_come_first(report: Report, frames: list[ase.Atoms], tmp_path: Path) -> None:
    base = LevelErrors.of("base", "replay", errors_of(frames, 0.05), errors_of(frames, 0.002), kept=True)
    worse = replace(report.levels[0], after=replace(report.levels[0].after, forces=errors_of(frames, 0.0126).forces))
    wrong = replace(
        report,
        levels=(worse, base),
        history=history([1.0, 2.0]),
        nve=(run(), run("the temperature ran away to 9000 K after 0.010 ps")),
        dimers=(report.dimers[0], [scan(("H", "O")), scan(("O", "O"), end=1.05)]),
        notes=("The caller's own.",),
    )
    text = warnings_of(wrong)
    assert "The caller's own." in text
    assert "level 'new' on 12 validation frames: forces 125 → 126 meV/Å." in text
    assert "Forgotten knowledge: level 'base' on 12 replay frames: energy 2.00 → 50.0 meV/atom, forces" in text
    assert "No evaluation was better than the start" in text
    assert "Dynamics of H₂O at constant energy broke: the temperature ran away to 9000 K after 0.010 ps." in text
    assert re.search(r"Hole in the repulsive wall of O–O: below 1\.05 Å .*In the base it rises all the way in\.", text)
    severities = [finding.severity for finding in findings(wrong)]
    assert severities == sorted(severities, key=["warning", "note", "good"].index)
    html, page = page_of(wrong, tmp_path)
    words = page.words
    assert words.index("ran away to 9000 K") < words.index("mean absolute errors on") < words.index("Learning curves")
    assert "result 0.0100 1.00 301 broke" in words
    assert html.count('class="band bad"') == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nve": (None, run(slope=2e-3))}, "Energy is not conserved: it drifts by 2.0 meV/atom/ps"),
        ({"nve": (run("x"), run("it broke"))}, "it broke. So did the base."),
        ({"dimers": ([scan(("H", "O"), 1.05)], [scan(("H", "O"), 1.05)])}, "The base has a hole there too."),
        ({"dimers": ([], [scan(("H", "O"), 1.05)])}, "after rising only"),
    ],
)
def test_what_is_warned_of(report: Report, change: dict[str, Any], expected: str) -> None:
    assert expected in warnings_of(replace(report, **change))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nve": (None, None)}, "Stability in dynamics was not checked."),
        ({"dimers": ((), ())}, "The repulsion of pairs of atoms was not checked."),
        ({"history": history([3.0, 2.0])}, "more epochs may help"),
        ({"reference_rank": 1}, "The data determine 1 of 2 reference energies"),
        ({"dimers": ([scan(("H", "O"))], [scan(("H", "O"), 0.8)])}, "new since the base: H–O"),
    ],
)
def test_what_is_noted(report: Report, change: dict[str, Any], expected: str) -> None:
    notes = [finding.text for finding in findings(replace(report, **change)) if finding.severity == "note"]
    assert any(expected in note for note in notes)
    assert not warnings_of(replace(report, **change))


def test_a_training_that_changed_nothing(report: Report) -> None:
    same = replace(report.levels[0], after=report.levels[0].before)
    assert "The training changed nothing: level 'new'" in warnings_of(replace(report, levels=(same,)))


def test_the_least_a_report_can_hold(frames: list[ase.Atoms], tmp_path: Path) -> None:
    level = LevelErrors.of("base", "validation", errors_of(frames[:3], 0.00321, stress=False))
    least = Report("From scratch", "scratch", (level,))
    html, page = page_of(least, tmp_path)
    assert "energy 3.21 meV/atom" in page.words
    assert "Only 3 validation frames" in page.words
    assert "stress" not in page.words
    assert not re.search(r"\bNone\b|\bnan\b", html)
    assert methods_sentence(least).startswith("A force field was trained from random parameters with ase_mlip. On 3 ")
    data = json.loads((tmp_path / "report.json").read_text())
    assert (data["nve"], data["kept"], data["levels"][0]["before"]) == ({"base": None, "result": None}, None, None)


def test_what_is_not_finite_is_none(report: Report, tmp_path: Path) -> None:
    short = NveResult(np.zeros(1), np.zeros(1), np.zeros(1), "the forces are not finite", "H2O", 0.5)
    page_of(replace(report, nve=(None, short), history=[{"epoch": 0, "valid_loss": float("nan")}]), tmp_path)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["nve"]["result"]["drift"] is None
    assert data["history"] == [{"epoch": 0, "valid_loss": None}]


def test_methods_sentence(report: Report) -> None:
    data = FileRecord("replay", "old.xyz", "", 20)
    assert methods_sentence(replace(report, files=(*report.files, data))) == (
        "The model old.safetensors (SHA-256 abababababab…) was fine-tuned with ase_mlip 0.1.0 and JAX 0.9 by the "
        "method 'lora' (rank 8; 12,345 of 41,000 parameters) on 50 frames of h2o.xyz (SHA-256 cdcdcdcdcdcd…), "
        "replaying 20 frames, for 7 epochs (energy:forces weights 100:1.5). Per-element reference energies were "
        "re-fitted by least squares. On 12 validation frames the mean absolute errors of level 'new' are 3.21 meV/atom "
        "(before: 12.5) for energy, 32.1 meV/Å (before: 125) for forces and 0.0321 meV/Å³ (before: 0.125) for stress. "
        "On 12 replay frames the mean absolute errors of level 'base' are 7.77 meV/atom (before: 7.77) for energy, "
        "77.7 meV/Å (before: 77.7) for forces and 0.0777 meV/Å³ (before: 0.0777) for stress."
    )


def test_files_and_versions(tmp_path: Path) -> None:
    path = tmp_path / "data.xyz"
    path.write_bytes(b"some frames")
    digest = hashlib.sha256(b"some frames").hexdigest()
    assert FileRecord.of("training", path, 3) == FileRecord("training", "data.xyz", digest, 3)
    assert FileRecord.of("training", f"{path}@:5", 5) == FileRecord("training", "data.xyz@:5", digest, 5)
    assert FileRecord.of("base", "default").sha256 == ""
    assert FileRecord.of("training", [ase.Atoms()], 1) == FileRecord("training", "structures in memory", "", 1)
    versions = installed_versions()
    assert versions["device"]
    assert re.fullmatch(r"3\.\d+\.\d+.*", versions["python"])
    assert {"jax", "flax", "optax", "ase"} <= set(versions)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0125, "0.0125"),
        (3.2099, "3.21"),
        (9.996, "10.0"),
        (-1234.5, "−1,234"),
        (99.96, "100"),
        (0, "0"),
        (None, "–"),
        (float("nan"), "–"),
        (1.5e-7, "1.50e-07"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (10, 5, "2.0× smaller"),
        (1, 12, "12× larger"),
        (100, 95, "5.0 % smaller"),
        (3, 3, "unchanged"),
        (0, 1, "from zero"),
    ],
)
def test_changes(before: float, after: float, text: str) -> None:
    assert change(before, after) == text


@pytest.mark.parametrize(
    ("low", "high", "log"), [(0, 1, False), (-37.2, 55.1, False), (3e-3, 2e4, True), (4.1, 9.3, True)]
)
def test_ticks_are_round_and_inside(low: float, high: float, log: bool) -> None:
    ticks = Axis(low, high, "x", log).ticks()
    assert 3 <= len(ticks) <= 9
    assert low <= min(ticks) < max(ticks) <= high
    assert all(len(f"{abs(tick):.6g}".replace(".", "").strip("0")) <= 2 for tick in ticks)


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (-2.5, "−2.5"), (1e5, "10⁵"), (3e-4, "3×10⁻⁴"), (1200, "1,200")])
def test_tick_texts(value: float, text: str) -> None:
    assert tick_text(value) == text


def test_marks_stand_where_the_values_are() -> None:
    frame = Frame(Axis(0, 10, "x"), Axis(1, 100, "y", log=True))
    width, height = frame.inner
    path = frame.line([0, 5, np.nan, 10], [1, 10, 10, 100], "after")
    assert path == f'<path class="line after" d="M0.0 {height:.1f}L{width / 2:.1f} {height / 2:.1f}M{width:.1f} 0.0"/>'
    dots = frame.dots([5, 5.0001, 20], [10, 10, 10], "before")
    assert re.findall(r"M(\S+) (\S+)h0", dots) == [(f"{width / 2:g}", f"{height / 2:g}")]
    assert f'cx="{width / 2:.1f}" cy="{height:.1f}"' in frame.dot(5, 1, "after")
    assert frame.dot(5, -1, "after") == ""
    same = Axis.around([np.full(3, 7.0), np.array([np.nan])], "x")
    assert same.low < 7 < same.high
    assert Axis.around([np.zeros(2)], "x", log=True).low > 0
