"""GET /: a plain upload form."""

from html import escape

from litestar import MediaType, get

from service.routes import HttpRequest, ready_classifier

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sous</title>
<h1>What is in the photo?</h1>
<form method="post" action="/predict" enctype="multipart/form-data">
<p><input type="file" name="file" accept="image/*" multiple required aria-label="Photos">
<p>{buttons}
</form>
<p><a href="/models">Models</a> · <a href="/schema">API</a> · <a href="/metrics">Metrics</a>
</html>
"""


@get("/", media_type=MediaType.HTML, sync_to_thread=False, include_in_schema=False)
def page(request: HttpRequest) -> str:
    """One button a model: the answer is the JSON of POST /predict."""
    names = ready_classifier(request).repository.names()
    buttons = [f'<button formaction="/predict?model={escape(name)}">{escape(name)}</button>' for name in names]
    return PAGE.format(buttons="\n".join(buttons))
