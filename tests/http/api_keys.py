"""API keys of each role, and the header that sends one."""

KEYS = {"read": "read-" + "r" * 16, "write": "write-" + "w" * 16, "admin": "admin-" + "a" * 16, "wrong": "x" * 20}
CLOSED = {f"{role}_keys": KEYS[role] for role in ("read", "write", "admin")}


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[role]}"} if role != "none" else {}
