"""Names of version 0.1 that still work in 0.2, with a warning that names the new one."""

from __future__ import annotations

NAMES = {
    **{
        name: f"surrogates.{name}"
        for name in ["Atan", "Exponential", "Gaussian", "Rectangle", "Sigmoid", "StraightThrough", "Triangle"]
    },
    **{
        name: f"defenses.{name}"
        for name in [
            "ANNTwin",
            "Conversion",
            "DLIF",
            "DSD",
            "Defense",
            "Distillation",
            "EMA",
            "EarlyStopping",
            "FEEL",
            "FirstLayerGuard",
            "FittedSurrogate",
            "HoSNN",
            "InputNoise",
            "MART",
            "MPDSGR",
            "MPPD",
            "RandHet",
            "SR",
            "ShiftGuard",
            "StoG",
            "TemporalEnsemble",
        ]
    },
    "InputQuantisation": "defenses.InputQuantization",
    "Audit": "auditing.Audit",
    "Flag": "auditing.Flag",
    "Member": "auditing.Member",
    "Run": "training.Run",
    "Band": "neurons.Band",
    "Attacked": "attacks.Attacked",
    "noise": "attacks.random_noise",
    "assg": "gradients.ASSG",
    "bptr": "gradients.BPTR",
    "drawn": "gradients.RandomSurrogate",
    "each_step": "gradients.PerStep",
    "eot": "gradients.EOT",
    "hart": "gradients.HART",
    "mean_field": "gradients.MeanField",
    "pdsg": "gradients.PDSG",
    "pulled": "gradients.ThresholdFirst",
    "relu_twin": "gradients.ReLUTwin",
    "rga": "gradients.RGA",
    "soft": "gradients.SoftSpikes",
    "still": "gradients.NoiseFree",
    "swap": "gradients.SwapSurrogate",
    "through": "gradients.Transfer",
    "unlocked": "gradients.BPDA",
    "zeroth": "gradients.ZerothOrder",
}
