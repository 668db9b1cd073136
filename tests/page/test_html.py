import re
from base64 import b64decode
from io import BytesIO

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from finetune.page.html import picture, render


@pytest.mark.parametrize(("edge", "size"), [(8, 112), (100, 100), (500, 112)])
def test_a_picture_has_its_pixels_inside_no_larger_than_its_place(edge, size):
    drawn = picture(np.full((edge, edge, 1), 200, np.uint8), '"><script>')
    assert "<script>" not in drawn
    data = re.search(r'src="data:image/webp;base64,([^"]+)"', drawn)[1]
    with Image.open(BytesIO(b64decode(data))) as image:
        assert image.size == (size, size)
    assert f'width="{size}" height="{size}"' in drawn


def test_a_page_that_lacks_a_fact_is_an_error():
    with pytest.raises(UndefinedError):
        render("compare.html", runs=[])
