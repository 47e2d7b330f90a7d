"""Floor 3: one family of published methods a folder, one method a file, one line here."""

from interp.methods.attribution.agreement import Agreement
from interp.methods.attribution.attribution_patching import AttributionPatching
from interp.methods.attribution.relevance import Relevance
from interp.methods.circuits.circuit_evaluation import CircuitEvaluation
from interp.methods.collapse.collapse import Collapse
from interp.methods.collapse.collapse_theory import CollapseTheory
from interp.methods.collapse.mixup_geometry import MixupGeometry
from interp.methods.collapse.recorder import CollapseRecorder
from interp.methods.compare.linear_map import LinearMap
from interp.methods.depth.block_jacobian import BlockJacobian
from interp.methods.depth.depth_gradients import DepthGradients
from interp.methods.depth.layer_importance import LayerImportance
from interp.methods.depth.layer_programs import LayerPrograms
from interp.methods.depth.layer_statistics import LayerStatistics
from interp.methods.depth.residual_erasure import ResidualErasure
from interp.methods.depth.residual_expansion import ResidualExpansion
from interp.methods.depth.skip_map import SkipMap
from interp.methods.explore.attention_patterns import AttentionPatterns
from interp.methods.explore.head_page import HeadPage
from interp.methods.explore.next_tokens import NextTokens
from interp.methods.explore.pair_check import PairCheck
from interp.methods.explore.verify_cell import VerifyCell
from interp.methods.interpreter.layer_masking import LayerMasking
from interp.methods.interpreter.linear_interpreter import LinearInterpreter
from interp.methods.lenses.logit_lens import LogitLens
from interp.methods.lipschitz.global_lipschitz import GlobalLipschitz
from interp.methods.lipschitz.layer_gain import LayerGain
from interp.methods.lipschitz.local_lipschitz import LocalLipschitz
from interp.methods.lipschitz.monotonicity import Monotonicity
from interp.methods.observables.feature_coupling import FeatureCoupling
from interp.methods.observables.feature_paths import FeaturePaths
from interp.methods.observables.feature_scores import FeatureScores
from interp.methods.observables.feature_steering import FeatureSteering
from interp.methods.observables.head_features import HeadFeatures
from interp.methods.patching.activation_patching import ActivationPatching
from interp.methods.patching.causal_tracing import CausalTracing
from interp.methods.patching.path_patching import PathPatching
from interp.terms import Method

METHODS: dict[str, type[Method]] = {
    "activation_patching": ActivationPatching,
    "agreement": Agreement,
    "attention_patterns": AttentionPatterns,
    "attribution_patching": AttributionPatching,
    "causal_tracing": CausalTracing,
    "circuit_evaluation": CircuitEvaluation,
    "collapse": Collapse,
    "collapse_theory": CollapseTheory,
    "feature_coupling": FeatureCoupling,
    "feature_paths": FeaturePaths,
    "feature_scores": FeatureScores,
    "feature_steering": FeatureSteering,
    "global_lipschitz": GlobalLipschitz,
    "head_features": HeadFeatures,
    "head_page": HeadPage,
    "layer_gain": LayerGain,
    "layer_masking": LayerMasking,
    "linear_interpreter": LinearInterpreter,
    "local_lipschitz": LocalLipschitz,
    "monotonicity": Monotonicity,
    "mixup_geometry": MixupGeometry,
    "next_tokens": NextTokens,
    "pair_check": PairCheck,
    "path_patching": PathPatching,
    "block_jacobian": BlockJacobian,
    "layer_importance": LayerImportance,
    "layer_programs": LayerPrograms,
    "residual_expansion": ResidualExpansion,
    "depth_gradients": DepthGradients,
    "layer_statistics": LayerStatistics,
    "linear_map": LinearMap,
    "residual_erasure": ResidualErasure,
    "logit_lens": LogitLens,
    "relevance": Relevance,
    "skip_map": SkipMap,
    "verify_cell": VerifyCell,
}
"""Every method by its key (snake_case of the class's name)."""

__all__ = [
    "METHODS",
    "ActivationPatching",
    "AttentionPatterns",
    "CausalTracing",
    "CircuitEvaluation",
    "Collapse",
    "CollapseRecorder",
    "CollapseTheory",
    "FeatureCoupling",
    "FeaturePaths",
    "FeatureScores",
    "FeatureSteering",
    "HeadFeatures",
    "HeadPage",
    "LayerMasking",
    "LinearInterpreter",
    "BlockJacobian",
    "LayerImportance",
    "LayerPrograms",
    "ResidualExpansion",
    "DepthGradients",
    "GlobalLipschitz",
    "ResidualErasure",
    "LayerGain",
    "LayerStatistics",
    "LinearMap",
    "LocalLipschitz",
    "LogitLens",
    "Monotonicity",
    "MixupGeometry",
    "NextTokens",
    "PairCheck",
    "PathPatching",
    "SkipMap",
    "VerifyCell",
]
