"""Matrices: rows, columns and singular vectors of F, and whether it copies or draws templates."""

from __future__ import annotations

import numpy as np
import torch

from interp.engine.linear import DENSE, Frozen, singular
from interp.methods.interpreter.pictures import Pictures
from interp.methods.interpreter.telling import local_share, neighbours
from interp.terms import UsageError


class Matrices(Pictures):
    """The tours that look at F itself; see ``Pictures``."""

    # -- rows and columns -------------------------------------------------------------------------

    def _declare_rows(self) -> None:
        pixels = self._pixels(self.onto, self.first.value)
        self._name_pixels(self.onto, pixels, self.spec.pixels is None)
        self.out.declare(
            "row_image",
            ("pixel", *self.into.axes),
            "rows of F: what an output pixel reads",
            "output per input",
            sheet="pixel",
            beside="input",
            panel="row_sum",
        )
        self.out.declare("output", self.onto.axes, "f(x₀)", "output", signed=0)
        self.out.declare("row_sum", ("pixel",), "sum of the row", "output per input")
        self.out.declare(
            "row_drift",
            ("pixel",),
            "how far the row turns from its mean over inputs, 1 - cosine",
            "1",
            signed=0,
        )

    def _rows(self, frozen: Frozen) -> dict[str, np.ndarray]:
        pixels = self.out.coords["pixel"]
        rows = frozen.pulls(frozen.one_hots(pixels))[0].transpose(0, 1)
        flat = rows.flatten(2)
        mean = flat.mean(0)
        cosine = torch.nn.functional.cosine_similarity(flat, mean[None], dim=-1)
        value = frozen.value.reshape(frozen.rows, -1).double().cpu().numpy()
        return {
            "row_image": self._lay(rows, lead=2), "output": self.onto.lay(value),
            "row_sum": flat.sum(-1).double().cpu().numpy(),
            "row_drift": (1 - cosine).clamp_min(0).double().cpu().numpy(),
        }  # fmt: skip

    def _declare_columns(self) -> None:
        pixels = self._pixels(self.into, self.first.x.detach())
        self._name_pixels(self.into, pixels, self.spec.pixels is None)
        self.out.declare(
            "column_image",
            ("pixel", *self.onto.axes),
            "columns of F: what an input pixel writes",
            "output per input",
            sheet="pixel",
        )
        self.out.declare("column_sum", ("pixel",), "sum of the column", "output per input")
        if not self.onto.picture:
            self.out.coords["label"] = list(range(self.first.outputs))

    def _columns(self, frozen: Frozen) -> dict[str, np.ndarray]:
        found = frozen.columns(self.out.coords["pixel"]).transpose(0, 1).flatten(2)
        values = found.double().cpu().numpy()
        return {"column_image": self.onto.lay(values), "column_sum": values.sum(-1)}

    # -- singular vectors -------------------------------------------------------------------------

    def _declare_svd(self) -> None:
        out = self.out
        out.coords["mode"] = list(range(1, self.k + 1))
        out.declare("singular_value", ("mode",), "singular values of F", "output per input", 0)
        out.declare(
            "singular_value_ci",
            ("bound", "mode"),
            "σ less and plus its certificate",
            "output per input",
            0,
        )
        out.coords["bound"] = ["σ - certificate", "σ + certificate"]
        out.declare(
            "eigen_input",
            ("mode", *self.into.axes),
            "eigen-inputs: right singular vectors",
            "1",
            sheet="mode",
            panel="singular_value",
        )
        out.declare(
            "eigen_output",
            ("mode", *self.onto.axes),
            "eigen-outputs: left singular vectors",
            "1",
            sheet="mode",
        )
        if not self.onto.picture:
            out.coords["label"] = list(range(self.first.outputs))
        out.declare(
            "certificate",
            ("mode",),
            "certificate: a true singular value lies within it",
            "output per input",
            0,
        )
        out.declare("weight", ("mode",), "how much of the mode x₀ holds, σ⟨v, x₀⟩", "output")
        out.declare("rank", (), "rank of F", "directions", 0)
        out.declare("spread", (), "(Σσ)²/Σσ²: directions that share the work", "directions", 0)

    def _svd(self, frozen: Frozen) -> dict[str, np.ndarray]:
        spec = self.spec
        found = singular(frozen, self.k, spec.solver, spec.seed)
        if spec.solver == "dense" and found.solver != "dense":
            entries = frozen.inputs * frozen.outputs
            self.context.note("solver", f"F has {entries:,} entries, more than {DENSE:,}: Lanczos.")
        top = max(float(found.values[0]), 1e-300)
        self.ledger.take("certificate", float(found.certificate.max()) / top)
        x = frozen.x.detach().double().cpu().numpy().ravel()
        onto = found.values * (found.inputs.reshape(self.k, -1) @ x)
        interval = np.stack([found.values - found.certificate, found.values + found.certificate])
        made = {
            "singular_value": found.values, "certificate": found.certificate,
            "singular_value_ci": interval, "weight": onto,
            "eigen_input": self.into.lay(found.inputs.reshape(self.k, -1)),
            "eigen_output": self.onto.lay(found.outputs.reshape(self.k, -1)),
            "rank": np.array(found.rank), "spread": np.array(found.spread),
        }  # fmt: skip
        return {k: v[None] for k, v in made.items()}

    # -- copy or template -------------------------------------------------------------------------

    def _declare_copy_template(self) -> None:
        self.near = neighbours(self.into, self.onto)
        out = self.out
        out.declare(
            "local_share",
            (),
            "share of Σ|F| within 3 × 3: near 1 copies, near the "
            "share of a uniform F draws templates",
            "1",
            0,
        )
        out.declare(
            "rank", (), "rank of F: how many patterns the output is made of", "directions", 0
        )
        out.declare("spread", (), "(Σσ)²/Σσ²: directions that share the work", "directions", 0)
        out.declare("share", (), "‖r‖ over ‖f‖", "1", 0)
        out.declare("output", self.onto.axes, "f(x₀)", "output", signed=0)
        out.declare("remainder", self.onto.axes, "remainder r(x₀)", "output")

    def _copy_template(self, frozen: Frozen) -> dict[str, np.ndarray]:
        if frozen.inputs * frozen.outputs > DENSE:
            raise UsageError(
                f"F has {frozen.inputs * frozen.outputs:,} entries; this tour makes at most "
                f"{DENSE:,}.", remedy="Use tour='rows' or 'svd'.",
            )  # fmt: skip
        matrix = frozen.matrix()[0].double()
        sigma = torch.linalg.svdvals(matrix).cpu().numpy()
        floor = max(matrix.shape) * torch.finfo(frozen.x.dtype).eps * max(sigma[0], 1e-300)
        f = frozen.value.reshape(-1).double()
        r = f - matrix @ frozen.x.detach().reshape(-1).double()
        total = float((sigma**2).sum())
        made = {
            "local_share": local_share(matrix.abs().cpu().numpy(), self.near),
            "rank": float((sigma > floor).sum()),
            "spread": float(sigma.sum() ** 2 / total) if total > 0 else np.nan,
            "share": float(r.norm() / f.norm()) if float(f.norm()) > 0 else np.nan,
            "output": self.onto.lay(f.cpu().numpy()), "remainder": self.onto.lay(r.cpu().numpy()),
        }  # fmt: skip
        return {k: np.asarray(v)[None] for k, v in made.items()}
