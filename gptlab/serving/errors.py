"""Errors that a client sees, in the form that OpenAI's clients expect."""

from __future__ import annotations

from typing import Any

TYPES = {
    401: "authentication_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
    507: "server_error",
}
STOPPING = "the server is being stopped; try again when it runs again"


class ApiError(Exception):
    """A request that is not answered.

    Args:
        status: the HTTP status.
        message: what is wrong, with its value, and the way out.
        param: the parameter that is wrong, if it is one.
        code: a short name for programs.
        headers: more headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def retry_later(status: int, message: str, code: str, seconds: int = 1) -> ApiError:
    """Return an error after which a client should try again."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(seconds)})


def do_not_retry(status: int, message: str, code: str) -> ApiError:
    """Return an error after which OpenAI's clients do not try again by themselves, as they would."""
    return ApiError(status, message, code=code, headers={"x-should-retry": "false"})
