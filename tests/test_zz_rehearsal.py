from tests.test_resume import *
from tests.test_resume import kill_at_random_moments
import tests.test_resume as m


def test_r(small_run, tmp_path):
    a = list(small_run)
    a[a.index("--seeds") + 1] = "20"
    run, whole = kill_at_random_moments(a, tmp_path, 5, 0.4)
    import glob

    print("parts", m.parts(tmp_path / "run"), m.parts(tmp_path / "whole"))
    assert sorted(r["trial"] for r in run.rows()) == list(range(40))
    m.assert_same(run, whole)
