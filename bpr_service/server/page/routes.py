"""The page at ``/``: plain files beside this module, and the bundled examples."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, Response

from bpr_service.errors import NotFoundError
from bpr_service.server.codec.write import base64_text
from bpr_service.server.http.openapi import problems

router = APIRouter()
FOLDER = Path(__file__).parent
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
CACHE = {"Cache-Control": "no-cache"}


@router.get("/", include_in_schema=False)
async def index() -> Response:
    """The page."""
    return FileResponse(FOLDER / "index.html", headers=CACHE)


@router.get("/docs", include_in_schema=False)
async def docs() -> Response:
    """The routes, drawn from ``/openapi.json`` without anything from elsewhere."""
    return FileResponse(FOLDER / "docs.html", headers=CACHE)


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request) -> Any:
    """The schema of all routes, made once."""
    return await run_in_threadpool(request.app.openapi)


@router.get("/page/audit.html", include_in_schema=False)
async def audit_page() -> Response:
    """The page of an audit, which fetches what it shows: that of the job after the ``#``."""
    return HTMLResponse(_audit_page(), headers=CACHE)


@cache
def _audit_page() -> str:
    from bpr_service.audit.page.build import skeleton

    return skeleton(
        head='<link rel="icon" href="/page/icon.svg" type="image/svg+xml">\n'
        '<link rel="stylesheet" href="/page/audit-page.css">\n<script type="module" src="/page/audit.js"></script>',
        back='  <a class="button" href="/#jobs">Jobs</a>\n  <span id="message" role="alert" hidden></span>',
        parts="",
    )


@router.get("/page/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    """A file of the page; names are looked up in the folder's own list, so no path leads out of it."""
    path = _assets().get(name)
    if path is None:
        raise NotFoundError("no such file")
    return FileResponse(path, media_type=TYPES[path.suffix], headers=CACHE)


@cache
def _assets() -> dict[str, Path]:
    own = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
    audit = Path(str(resources.files("bpr_service.audit.page")))
    return own | {f"audit-{name}": audit / name for name in ("page.css", "page.js")}


@router.get("/v1/examples", tags=["examples"], responses=problems(401, 403, 429))
async def list_examples() -> dict[str, list[str]]:
    """Names of the bundled examples."""
    from bpr_service.examples import NAMES

    return {"examples": list(NAMES)}


@router.get(
    "/v1/examples/{name}",
    tags=["examples"],
    responses=problems(401, 403, 404, 422, 429),
)
async def get_example(name: str) -> dict[str, Any]:
    """A photograph and its coarse masks: the body of ``POST /v1/refine/instance``."""
    return await run_in_threadpool(_example, name)


@cache
def _example(name: str) -> dict[str, Any]:
    from bpr_service.examples import NAMES, load_example
    from bpr_service.masks.label_maps import encode_png

    if name not in NAMES:
        raise NotFoundError("no such example", expected=", ".join(NAMES), got=repr(name[:60]))
    try:
        example = load_example(name)
    except ImportError:
        raise NotFoundError(
            "the photographs are not installed",
            expected="scikit-image",
            got="none",
            fix="pip install 'bpr-service[demo]'",
        ) from None
    return {"image": {"data": base64_text(encode_png(example.image))}, "masks": example.instances}
