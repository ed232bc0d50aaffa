"""Why a network is fragile."""
