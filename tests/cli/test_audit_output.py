"""What ``spikeguard audit`` prints beside its table."""

from dataclasses import replace

from spikeguard.auditing.audit import Audit
from spikeguard.cli.audit import failures


def test_a_member_that_fails_is_named_with_its_reason(small_audit: Audit) -> None:
    first, *others = small_audit.record.members
    assert failures(small_audit.record) == []
    stopped = replace(small_audit.record, members=(replace(first, failed="RuntimeError: no"), *others))
    assert failures(stopped) == [f"failed: {first.title}: RuntimeError: no"]
