"""A client of the service, synchronous and asynchronous.

>>> from bpr_service.client import Client
>>> with Client("http://127.0.0.1:8000") as client:                        # doctest: +SKIP
...     result = client.refine("photo.jpg", masks)
...     result.masks[0].status, result.masks[0].to_array().shape
('refined', (480, 640))

Images go up as a stream. 429 and 503 are tried again after the time in ``Retry-After``; the errors of the service come
back as the exceptions of `bpr_service.errors`. H, W are an image's height and width in px.
"""

from __future__ import annotations

try:
    from bpr_service.client.clients import AsyncClient, Client
except ModuleNotFoundError as error:
    from bpr_service.extras import missing

    raise (ImportError(str(missing(error) or error), name=error.name)) from None
from bpr_service.client.messages import Refined, RefinedMask

__all__ = ["AsyncClient", "Client", "Refined", "RefinedMask"]
