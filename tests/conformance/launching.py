"""A browser that is launched: it keeps cookies, follows redirects, and says where it landed."""

from __future__ import annotations

from dataclasses import dataclass, field
from http.cookies import SimpleCookie
from urllib.parse import urlencode, urljoin, urlsplit

import httpx

from tests.conformance.service import Service


@dataclass
class Browser:
    """Cookies go back to the service alone, Secure ones too: loopback counts as secure."""

    service: Service
    cookies: dict[str, str] = field(default_factory=dict)
    most: int = 8

    def launch(self, issuer: str, launch: str) -> httpx.Response:
        """Launched by an EHR, through its sign-in, to whatever page comes at the end."""
        return self.get(
            f"{self.service.url(self.service.launch)}?{urlencode({'iss': issuer, 'launch': launch})}"
        )

    def get(self, url: str) -> httpx.Response:
        """A page, redirects followed."""
        with httpx.Client(timeout=30.0, follow_redirects=False, trust_env=False) as http:
            for _ in range(self.most):
                is_ours = urlsplit(url).netloc == urlsplit(self.service.base).netloc
                said = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
                answer = http.get(url, headers={"Cookie": said} if is_ours and said else {})
                if is_ours:
                    self._keep(answer)
                if answer.status_code not in (301, 302, 303, 307, 308):
                    return answer
                url = urljoin(url, answer.headers["Location"])
        raise AssertionError(f"more than {self.most} redirects")

    def _keep(self, answer: httpx.Response) -> None:
        for line in answer.headers.get_list("Set-Cookie"):
            # attributes that this Python's parser may not know do not matter here
            for name, morsel in SimpleCookie(line.partition(";")[0]).items():
                if morsel.value:
                    self.cookies[name] = morsel.value
                else:
                    self.cookies.pop(name, None)
