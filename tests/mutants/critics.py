"""Planted errors in calibration, the learned sum, critics joined, what critics remember, and the diagnosis."""

CALIBRATION = "critics/scoring/calibration.py"
CALIBRATION_TEST = "tests/critics/scoring/test_calibration.py"
LOGISTIC = "critics/scoring/logistic.py"
LOGISTIC_TEST = " ".join(f"tests/critics/scoring/test_{name}.py" for name in ("logistic", "calibration", "learned"))
MEMO = "critics/scoring/memo.py"
MEMO_TEST = "tests/critics/scoring/test_memo.py"
COMBINE = "critics/scoring/combine.py"
COMBINE_TEST = "tests/critics/scoring/test_combine.py tests/critics/scoring/test_learned.py"
FITS = "critics/diagnosis/fits.py"
FITS_TEST = "tests/critics/diagnosis/test_fits.py"

MUTANTS: list[tuple[str, str, str, str]] = [
    (CALIBRATION, "self.scale * logit(score) + self.bias", "self.scale * logit(score)", CALIBRATION_TEST),
    (CALIBRATION, "if scale < 0:  #", "if False:  #", CALIBRATION_TEST),
    (CALIBRATION, "fits[q % 2](s.score)", "fits[0](s.score)", CALIBRATION_TEST),
    (CALIBRATION, "for half in (1, 0)]", "for half in (0, 1)]", CALIBRATION_TEST),
    (CALIBRATION, "if state.terminal and state.answer is None else", "if False else", CALIBRATION_TEST),
    (CALIBRATION, "if fitted[kind].head != head_hash(folder):", "if False:", CALIBRATION_TEST),
    (CALIBRATION, 'if kind == "prm" and fitted', 'if kind == "orm" and fitted', CALIBRATION_TEST),
    (LOGISTIC, "(x * (p * (1 - p)).clamp_min(1e-9)[:, None])", "(x * p.clamp_min(1e-9)[:, None])", LOGISTIC_TEST),
    (LOGISTIC, "gradient = x.T @ (p - y) / len(y) + pull * (w - start)", "gradient = x.T @ (p - y) / len(y)", LOGISTIC_TEST),
    (LOGISTIC, "if moving])", "])", LOGISTIC_TEST),
    (FITS, "score=0.0 if s.answer is None else next(ranks)", "score=next(ranks)", FITS_TEST),
    (
        FITS,
        "fitted = [_fit(named, halves[1], prm_aggregate), _fit(named, halves[0], prm_aggregate)]",
        "fitted = [_fit(named, halves[0], prm_aggregate), _fit(named, halves[1], prm_aggregate)]",
        FITS_TEST,
    ),
    (FITS, 'score if s["answer"] is not None else 0.0', "score", FITS_TEST),
    (MEMO, "if key not in self._known and key not in self._coming]", "if key not in self._known]", MEMO_TEST),
    (MEMO, "map(asyncio.shield, coming.values())", "coming.values()", MEMO_TEST),
    (MEMO, "while len(self._known) > self.size:", "while False:", MEMO_TEST),
    (MEMO, "self._known.popitem(last=False)", "self._known.popitem(last=True)", MEMO_TEST),
    (
        COMBINE,
        "unbegun = [(value, 1.0)] if value is not None and weights.value > 0 else begun",
        "unbegun = begun",
        COMBINE_TEST,
    ),
    (COMBINE, "finished = [(orm, 1.0)] if orm is not None else begun", "finished = begun", COMBINE_TEST),
    (COMBINE, "float(w[-1] - weights @ mean)", "float(w[-1])", COMBINE_TEST),
    (COMBINE, "weights = w[:-1] / scale", "weights = w[:-1]", COMBINE_TEST),
]
