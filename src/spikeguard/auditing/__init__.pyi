"""The public names of spikeguard.auditing."""

from spikeguard.auditing.audit import Audit as Audit
from spikeguard.auditing.flags import KINDS as KINDS
from spikeguard.auditing.flags import Flag as Flag
from spikeguard.auditing.member import Member as Member
from spikeguard.auditing.suite import SUITES as SUITES
from spikeguard.auditing.verify import Verified as Verified
