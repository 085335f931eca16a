"""The dashboard: one page that shows what the admin API says, and steers by it."""

from lb.dashboard.page import CONTENT_SECURITY_POLICY, dashboard_page

__all__ = ["CONTENT_SECURITY_POLICY", "dashboard_page"]
