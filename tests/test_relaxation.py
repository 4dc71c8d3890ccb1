"""Relaxing many structures: against ASE's own FIRE, one structure at a time; kills, bad structures, shapes."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixedPlane
from ase.optimize import FIRE, LBFGS
from ase.optimize.optimize import Optimizer
from conftest import build_zoo
from pair_data import CUTOFF, pair_force_field
from test_cli import run
from toy_data import same_bits

import ase_mlip
from ase_mlip import many
from ase_mlip.calculator import MLIPCalculator
from ase_mlip.force_field import ForceField
from ase_mlip.journal import Ledger
from ase_mlip.predictor import compiled_interaction
from ase_mlip.relaxation import RelaxResult, relax

NAMES = ("H2O", "CH4", "CH3CH2OH", "C6H6", "CO2", "H2")


def molecules(count: int, stdev: float = 0.08) -> list[ase.Atoms]:
    """Rattled molecules of three to twelve atoms."""
    found = []
    for number in range(count):
        atoms = molecule(NAMES[number % len(NAMES)])
        atoms.rattle(stdev, seed=number)
        found.append(atoms)
    return found


def mixture() -> list[ase.Atoms]:
    """Molecules, a crystal, a slab with a fixed layer, a wire, an atom, and a stretched and a constrained molecule."""
    crystal = bulk("Cu", cubic=True, a=2.5)
    crystal.rattle(0.1, seed=1)
    slab = fcc111("Cu", (2, 1, 3), a=2.5, vacuum=5.0)
    slab.pbc = (True, True, False)
    slab.rattle(0.1, seed=2)
    slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < 6))
    plane = molecule("CH3OH")
    plane.rattle(0.1, seed=3)
    plane.set_constraint([FixAtoms([0]), FixedPlane([1, 2], (0.0, 0.0, 1.0))])
    stretched = molecule("C6H6")
    stretched.positions *= 1.6  # gets more neighbours on its way
    tight = molecule("CH4")
    tight.positions *= 0.8
    wire = build_zoo()["wire"]
    return [crystal, *molecules(5), slab, stretched, wire, plane, ase.Atoms("H"), tight, *molecules(4, stdev=0.02)]


def relax_by_ase(
    force_field: ForceField,
    structures: list[ase.Atoms],
    fmax: float,
    steps: int,
    dtype: str = "float64",
    rule: type[Optimizer] = FIRE,
) -> list[tuple[ase.Atoms, bool, int]]:
    """One structure after another, with ASE's optimiser."""
    calculator = MLIPCalculator(force_field, dtype=dtype)
    found = {}
    # the largest first: the others fit into its pad shape, so that little is compiled
    for number in sorted(range(len(structures)), key=lambda n: -len(structures[n])):
        atoms = structures[number].copy()
        atoms.calc = calculator
        optimizer = rule(atoms, logfile=None)
        converged = bool(optimizer.run(fmax=fmax, steps=steps))
        found[number] = with_copied_results(atoms), converged, optimizer.nsteps
    return [found[number] for number in range(len(structures))]


def with_copied_results(atoms: ase.Atoms) -> ase.Atoms:
    """A copy that keeps its results when its calculator goes on to other structures."""
    copy = atoms.copy()
    copy.calc = SinglePointCalculator(copy, **atoms.calc.results)
    return copy


def assert_same_results(one: RelaxResult, other: RelaxResult, tolerance: float = 0.0) -> None:
    """Equal but for the tolerance."""
    np.testing.assert_array_equal(one.converged, other.converged)
    np.testing.assert_array_equal(one.steps, other.steps)
    assert one.problems == other.problems
    for first, second in zip(one.structures, other.structures, strict=True):
        np.testing.assert_allclose(first.positions, second.positions, atol=tolerance, rtol=0)
        assert (first.calc is None) == (second.calc is None)
        if first.calc is not None:
            for name, value in first.calc.results.items():
                np.testing.assert_allclose(second.calc.results[name], value, atol=10 * tolerance, rtol=0)


@pytest.fixture(scope="module")
def references() -> dict[str, list[tuple[ase.Atoms, bool, int]]]:
    """What ASE makes of the mixture, with each optimiser."""
    rules = {"fire": FIRE, "lbfgs": LBFGS}
    return {name: relax_by_ase(pair_force_field(), mixture(), 0.01, 90, rule=rule) for name, rule in rules.items()}


@pytest.mark.parametrize("optimizer", ["fire", "lbfgs"])
@pytest.mark.parametrize(("batch_size", "patience"), [(5, 50.0), (None, 0.0)])
def test_every_structure_walks_as_it_does_alone(
    batch_size: int | None,
    patience: float,
    optimizer: str,
    references: dict[str, list[tuple[ase.Atoms, bool, int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Steps, energies and positions are those of ASE's optimiser, in order, whether the batch stays or shrinks."""
    monkeypatch.setattr(many, "COMPILATION", patience)
    force_field, structures = pair_force_field(), mixture()
    before = [atoms.copy() for atoms in structures]
    result = relax(
        force_field,
        structures,
        fmax=0.01,
        steps=90,
        optimizer=optimizer,
        batch_size=batch_size,
        dtype="float64",
        log=None,
    )
    assert structures == before
    assert 8 < result.converged.sum() < len(structures)
    for number, (expected, converged, steps) in enumerate(references[optimizer]):
        found = result.structures[number]
        assert (result.converged[number], result.steps[number]) == (converged, steps), number
        np.testing.assert_allclose(found.positions, expected.positions, atol=1e-9)
        np.testing.assert_allclose(found.get_potential_energy(), expected.get_potential_energy(), atol=1e-9)
        np.testing.assert_allclose(found.get_forces(), expected.get_forces(), atol=1e-8)
        assert ("stress" in found.calc.results) == ("stress" in expected.calc.results)
        if "stress" in found.calc.results:
            np.testing.assert_allclose(found.get_stress(), expected.get_stress(), atol=1e-9)
        problem = result.problems[number]
        assert problem or converged
        assert not problem or problem.startswith("it fell into" if converged else ("it fell into", "not converged: "))


def test_few_shapes_and_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred structures pass through one shape, and neighbours are searched far less often than forces computed."""
    made = []
    keep_full = ase_mlip.relaxation.keep_full
    monkeypatch.setattr(ase_mlip.relaxation, "keep_full", lambda m, *rest: (made.append(m), keep_full(m, *rest)))
    before = compiled_interaction._cache_size()
    result = relax(pair_force_field(), molecules(100), steps=60, batch_size=20, log=None)
    assert compiled_interaction._cache_size() - before <= 2
    assert made[0].batch.rebuilds - 100 < 0.2 * result.steps.sum()


def test_a_model_of_many_elements_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the elements in use are computed, and the numbers stay."""
    made = []
    keep_full = ase_mlip.relaxation.keep_full
    monkeypatch.setattr(ase_mlip.relaxation, "keep_full", lambda m, *rest: (made.append(m), keep_full(m, *rest)))
    many_elements = pair_force_field(also=("Li", "Be", "B", "N", "F", "Na", "Mg", "Al"))
    options = {"steps": 5, "dtype": "float64", "log": None}
    cut = relax(many_elements, molecules(4), **options)
    assert made[0].batch.force_field.elements == (1, 6, 8)
    assert_same_results(cut, relax(pair_force_field(), molecules(4), **options), 1e-10)


def test_a_network_in_single_precision(force_field: ForceField) -> None:
    """A MACE in the calculator's default precision: what ASE finds, to that precision."""
    structures = [build_zoo()[name] for name in ("molecule", "slab")]
    result = relax(force_field, structures, steps=4, log=None)
    references = relax_by_ase(force_field, structures, 0.05, 4, "float32")
    for (expected, _, _), found in zip(references, result.structures, strict=True):
        np.testing.assert_allclose(found.positions, expected.positions, atol=1e-4)
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-4)


def test_bad_structures_cost_the_others_nothing(force_field: ForceField) -> None:
    good = [build_zoo()["molecule"], molecule("CO"), molecule("H2O")]
    unknown, undefined, overlapping = ase.Atoms("XeH"), molecule("H2O"), molecule("CO2")
    unknown.positions[1] = 1.0
    undefined.positions[2, 1] = np.nan
    overlapping.positions[1] = overlapping.positions[0]
    mixed = [good[0], unknown, undefined, good[1], overlapping, ase.Atoms(), good[2]]
    lines: list[str] = []
    options = {"steps": 3, "fmax": 0.001, "dtype": "float64"}
    result = relax(force_field, mixed, **options, log=lines.append)
    alone = relax(force_field, good, **options, log=None)
    for number, expected in zip((0, 3, 6), alone.structures, strict=True):
        np.testing.assert_allclose(result.structures[number].positions, expected.positions, atol=1e-10)
    for number, words in {1: "does not know Xe", 2: "must be finite", 4: "on top of each other", 5: "no atoms"}.items():
        assert words in result.problems[number]
        assert not result.converged[number]
        assert result.steps[number] == 0
        assert result.structures[number].calc is None
        np.testing.assert_array_equal(result.structures[number].positions, mixed[number].positions)
    assert "number 0: not converged" in lines[-1]
    assert "and 4 more" in lines[-1]


def test_what_falls_apart_is_reported() -> None:
    pair = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.6]])  # beyond the top of an inverted Morse curve
    far = ase.Atoms("H2", positions=[[0, 0, 0], [0, 0, CUTOFF + 1]])
    result = relax(pair_force_field(-1.0), [pair, far], log=None, fmax=1e-15)
    assert result.converged.all()
    assert result.problems == ["it fell into 2 parts, each farther than the cutoff from the others", None]


class Killed(BaseException):
    """The end of a process."""


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_killed_run_goes_on(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished structures are kept with all their bits, a torn line is dropped, and nothing is done twice."""
    force_field, structures, done = pair_force_field(), [*molecules(20), ase.Atoms("Xe")], []
    keep = Ledger.keep
    options = {"fmax": 0.02, "steps": 70, "batch_size": 4, "dtype": "float64", "log": None}
    whole = relax(force_field, structures, **options)

    def die(ledger: Ledger, number: int, **record: object) -> None:
        if len(done) == after:
            raise Killed
        done.append(number)
        keep(ledger, number, **record)

    monkeypatch.setattr(Ledger, "keep", die)
    with pytest.raises(Killed):
        relax(force_field, structures, **options, folder=tmp_path)
    with (tmp_path / "relaxed.jsonl").open("a") as file:
        file.write('{"number": 7, "converged": tr')
    monkeypatch.setattr(Ledger, "keep", lambda ledger, n, **record: (done.append(n), keep(ledger, n, **record)))
    resumed = relax(force_field, structures, **options, folder=tmp_path)
    assert sorted(done) == list(range(len(structures)))
    assert_same_results(whole, resumed, 1e-9)
    again = relax(force_field, structures, **options, folder=tmp_path)
    assert len(done) == len(structures)
    for one, other in zip(resumed.structures, again.structures, strict=True):
        assert same_bits(one.positions, other.positions)
        assert one.calc is None or same_bits(one.calc.results["forces"], other.calc.results["forces"])
    for change in ({"fmax": 0.03}, {"steps": 71}, {"dtype": "float32"}, {"optimizer": "lbfgs"}):
        with pytest.raises(ValueError, match="run of another"):
            relax(force_field, structures, **{**options, **change}, folder=tmp_path)
    with pytest.raises(ValueError, match="run of another"):
        relax(force_field, structures[1:], **options, folder=tmp_path)
    with pytest.raises(ValueError, match="run of another"):
        relax(pair_force_field(1.1), structures, **options, folder=tmp_path)


def test_control_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []

    def press(ledger: Ledger, number: int, **record: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "keep", press)
    with pytest.raises(KeyboardInterrupt):
        relax(pair_force_field(), molecules(3), log=lines.append, folder=tmp_path)
    assert lines == [f"interrupted: relaxed 0 of 3; the same call with the folder {tmp_path} goes on from there"]


def test_options_that_cannot_be() -> None:
    force_field, structures = pair_force_field(), molecules(2)
    for change, words in (
        ({"fmax": 0.0}, "positive force"),
        ({"steps": -1}, "not negative"),
        ({"batch_size": 0}, "at least 1"),
        ({"optimizer": "bfgs"}, "'fire', 'lbfgs'"),
        ({"level": "dft"}, "no level 'dft'"),
        ({"dtype": "float16"}, "float16"),
    ):
        with pytest.raises(ValueError, match=words):
            relax(force_field, structures, log=None, **change)
    with pytest.raises(TypeError, match="list of Atoms"):
        relax(force_field, structures[0])
    assert relax(force_field, structures, steps=0, log=None).steps.tolist() == [0, 0]


def test_the_public_name_is_the_function() -> None:
    assert ase_mlip.relax is relax


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, readable by ASE, with what became of each; nothing else is left."""
    structures = [*molecules(4), ase.Atoms("Xe")]
    ase.io.write(tmp_path / "in.xyz", structures)
    monkeypatch.setattr(ForceField, "load", lambda name: pair_force_field())
    output = tmp_path / "out.xyz"
    printed = run("relax", tmp_path / "in.xyz", "-o", output, "--fmax", 0.02, "--steps", 200, "--dtype", "float64")
    assert "4 of 5 converged (number 4: the model does not know Xe" in printed
    assert printed.endswith(f"wrote {output}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.xyz", "out.xyz"]
    frames = ase.io.read(output, ":")
    assert [atoms.get_chemical_formula() for atoms in frames] == [a.get_chemical_formula() for a in structures]
    assert [atoms.info["relax_converged"] for atoms in frames] == [True] * 4 + [False]
    assert "Xe" in frames[4].info["relax_problem"]
    references = relax_by_ase(pair_force_field(), structures[:4], 0.02, 200)
    for (expected, _, steps), found in zip(references, frames, strict=False):
        assert found.info["relax_steps"] == steps
        assert found.get_potential_energy() == pytest.approx(expected.get_potential_energy(), abs=1e-6)
        assert np.abs(found.get_forces()).max() < 0.02
