"""Sweeps from files, good and bad, and the IGZO data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from aimc.circuit import CircuitError, choose_degree, fit_surface, fit_transfer, read_sweep

IGZO = Path(__file__).parents[4] / "shared" / "data" / "hardware" / "igzo-2t0c-spice" / "experiments" / "spice_2t0c_v1"
igzo = pytest.mark.skipif(
    not IGZO.exists(), reason="the IGZO data is part of the shared data, which is not beside this checkout"
)


def write(tmp_path, text):
    path = tmp_path / "sweep.csv"
    path.write_text(text)
    return path


def test_a_long_table_with_units(tmp_path):
    path = write(tmp_path, "# a sweep\nV_SN,pulse,Q\n0,5,0\n300,5,1.5\n0,10,0\n300,10,3\n")
    sweep = read_sweep(
        path, stored="V_SN", read="pulse", output="Q", units={"stored": "mV", "read": "ns", "output": "fC"}
    )
    np.testing.assert_allclose(sweep.stored_v, [0, 0.3, 0, 0.3])
    np.testing.assert_allclose(sweep.read, [5e-9, 5e-9, 10e-9, 10e-9])
    np.testing.assert_allclose(sweep.output, [0, 1.5e-15, 0, 3e-15])
    assert len(sweep.at(10e-9).output) == 2
    assert sweep.between(0.2, 0.4).stored_v.tolist() == [0.3, 0.3]
    with pytest.raises(CircuitError, match="choose one of these"):
        sweep.at(7e-9)


def test_a_wide_table_without_header(tmp_path):
    path = write(tmp_path, "0.0, 1e-9, 2e-9\n0.5, 2e-9, 4e-9\n\n")
    sweep = read_sweep(path, stored=0, output={1: 0.1, 2: 1.0}, sign=-1)
    np.testing.assert_allclose(sweep.output, [-1e-9, -2e-9, -2e-9, -4e-9])
    np.testing.assert_allclose(sweep.read, [0.1, 0.1, 1.0, 1.0])


@pytest.mark.parametrize(
    ("text", "kwargs", "message"),
    [
        ("", {}, "no rows"),
        ("v,i\n", {}, "header and no rows"),
        ("v,i\n0,1\n1\n", {}, "line 3: 1 columns where there should be 2"),
        ("v,i\n0,1\n1,x\n", {}, "line 3, column 1: 'x'"),
        ("v,i\n0,1\n1,nan\n", {}, "line 3, column 1: 'nan'"),
        ("# c\nv,i\n0,1\n1,2\n0.5,3\n", {}, "line 5: stored voltage 0.5 V after 1 V"),
        ("v,i\n0,1\n0,2\n", {}, "line 3: stored voltage 0 V after 0 V"),
        ("v,i\n0,1\n", {"stored": "u"}, "0 columns named 'u'; they are v, i"),
        ("0,1\n", {}, "no header"),
        ("0,1\n", {"stored": 3, "output": 1}, "columns 0 to 1, not 3"),
        ("v,i\n0,1\n", {"units": {"output": "mm"}}, "output='mm'"),
        ("v,i\n0,1\n", {"units": {"charge": "C"}}, "'charge' is none of"),
    ],
)
def test_malformed_files_say_the_line(tmp_path, text, kwargs, message):
    with pytest.raises(CircuitError, match=message):
        read_sweep(write(tmp_path, text), **({"stored": "v", "output": "i"} | kwargs))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CircuitError, match="nothing.csv cannot be read"):
        read_sweep(tmp_path / "nothing.csv", stored=0, output=1)


@igzo
def test_igzo_transfer_curve():
    """The v1.1 simulation at 1 V on the drain: a polynomial by cross-validation, and its error on held-out points."""
    sweep = read_sweep(
        IGZO / "results" / "spice_idvg_v11.csv", stored="Vg_V", output={"Id_Vd1_A_spice": 1.0}, sign=-1
    ).between(0.4, 1.6)
    degree, errors = choose_degree(sweep.stored_v, sweep.output, offset_v=1.0)
    assert 2 <= degree <= 5
    assert errors[degree] < 0.01 * np.ptp(sweep.output)  # measured: see the README
    assert errors[degree] < 0.2 * errors[1]
    fit = fit_transfer(sweep.stored_v, sweep.output, offset_v=1.0, degree=degree, n_levels=8)
    assert fit.max_error_lsb < 0.1
    assert fit.to_cell(1.6, lowest_v=0.4).coefficients == fit.coefficients


@igzo
def test_igzo_digitised_output_curves():
    """The hand-digitised measurement: three stored voltages, a surface that is zero at zero drain voltage, one curve
    held out."""
    sweep = read_sweep(IGZO / "data" / "idvd.csv", stored=0, output={1: 0.4, 2: 1.2, 3: 2.0}, units={"output": "uA"})
    drain, gate = sweep.stored_v, sweep.read  # this file sweeps the read voltage
    held = np.arange(len(drain)) % 4 == 1
    fit = fit_surface(gate[~held], drain[~held], sweep.output[~held], offset_v=1.2, degree=2, read_degree=3)
    rms = np.sqrt(np.mean((fit(gate[held], drain[held]) - sweep.output[held]) ** 2))
    assert rms < 0.02 * np.ptp(sweep.output)
