"""Active health checks."""

from lb.control.health.schedule import HealthChecks as HealthChecks
from lb.control.health.verdict import Verdict as Verdict
