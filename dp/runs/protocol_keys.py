"""Checks of a protocol's own keys."""

from dp.statistics.metrics import RULES, TIES

KEYS = ("seeds", "votes", "ties", "report", "grad", "attack", "attack_variants", "known_draws", "judge")


def check_protocol(protocol: dict, window: int) -> None:
    """Raises ValueError for missing or wrong keys of a protocol, and for a `window` that is no whole number >= 1."""
    absent = [key for key in KEYS if key not in protocol]
    if absent:
        raise ValueError(f"need protocol.{absent[0]}, got a protocol without it")
    for key in ("grad", "ties", "attack"):
        if not isinstance(protocol[key], str) and not (key == "attack" and protocol[key] is None):
            raise ValueError(f"need protocol.{key} as a name, got {protocol[key]!r}")
    if protocol["ties"] not in TIES:
        raise ValueError(f"need ties {' or '.join(TIES)}, got ties={protocol['ties']!r}")
    if protocol["judge"] is not None and not isinstance(protocol["judge"], dict):
        raise ValueError(f"need protocol.judge as null or a mapping, got {protocol['judge']}")
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        raise ValueError(f"need window as a whole number >= 1, got window={window}")
    rules, known = protocol["report"], protocol["known_draws"]
    if not isinstance(rules, list) or not rules or any(rule not in [*RULES] for rule in rules):
        raise ValueError(f"need protocol.report as a list of {', '.join(RULES)}, got {rules}")
    judge = protocol["judge"] or {}
    seen = ["average", "worst", *(rule for rule in ("vote", "mean_logits") if judge.get("rule") == rule)]
    if judge.get("in_loop") and rules[0] not in seen:
        raise ValueError(
            f"need protocol.report to begin with {' or '.join(seen)}, which in-loop samples decide, got {rules}"
        )
    images = protocol.get("images")
    if isinstance(images, int) and images < 1:
        raise ValueError(f"need protocol.images >= 1, got protocol.images={images}")
    if not isinstance(known, bool):
        raise ValueError(f"need protocol.known_draws true or false, got {known}")
