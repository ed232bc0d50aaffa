"""Hashes of the suites of released versions, so that their records can be checked.

The hash of a suite depends on norm and, for AutoAttack's protocol, on whether the model is random.
"""

from __future__ import annotations

PAST: dict[tuple[str, str], frozenset[str]] = {
    ("suite-v2", "quick"): frozenset(
        # of 0.1, then of 0.2
        [
            "6367b93a8b1249c1",
            "70dfd16f9f00b204",
            "7a7a989611a12774",
            "5eb208c632c15509",
            "e61e717c6d231fd8",
            "25b80e78f6312ff9",
        ]
    ),
    ("suite-v2", "standard"): frozenset(
        [
            "6d52d48ec2cb42de",
            "6fdbef1cc484a8f6",
            "bb174e80aeee124a",
            "709ad1b45a338ffd",
            "9864ab3e10a8a898",
            "f70aac947846ee74",
        ]
    ),
    ("suite-v2", "full"): frozenset(
        [
            "0e1835ee43100a47",
            "b030fc4c082e9e52",
            "c0b6d60fa9578600",
            "8061d91bcaff5875",
            "06415cf5b440004e",
            "342bb19f4db0a65c",
        ]
    ),
    ("suite-v2", "autoattack"): frozenset(
        [
            "140f4c557969bf33",
            "37a28a14e27f7885",
            "6d98327dd72a18e4",
            "c31d3f66b62ebc2c",
            "cab00f1f315c96e2",
            "fcf98dd18226b708",
            "a1582a477833d25f",
            "c0b44139fd1917aa",
            "0a00298d778f4b12",
            "8829303ba91805e2",
            "28225827b4a42e6c",
            "15a57084d4a2ee28",
        ]
    ),
    ("suite-v3", "quick"): frozenset(["87f059bbe97f82c6", "b4f2da916688bf77", "20eba3007eb7c92e"]),
    ("suite-v3", "standard"): frozenset(["5077a99d4b242f7d", "754bb0d98e2913ce", "052352d0cbb10a59"]),
    ("suite-v3", "full"): frozenset(["98c3c6cfcaa272f9", "e21c386f8b90ed6e", "eedfd3e64bb87998"]),
    ("suite-v3", "autoattack"): frozenset(
        [
            "27701a2cc8877311",
            "369aefe0e7ff573e",
            "6ae69bd92bc90c24",
            "659d0df68f75f376",
            "ca3de1630b70aeac",
            "005aeddb8c136f5d",
        ]
    ),
}
