"""Random texts as tokens of bytes."""

import random

from perceivers.text.tokenizers import FIRST_BYTE, MASK


def draw_texts(count):
    """Tokens of random bytes, white space, UTF-8, long words, short words, and nothing; some of them are masked."""
    draw = random.Random(0)
    characters = ["".join(map(chr, range(9, 14))) + " ", "a\u00e9\u20ac\U0001d11e \u2003\n", "abc", "the cat\t"]
    for number in range(count):
        if number % 5 == 4:
            data = draw.randbytes(draw.randrange(40))
        else:
            data = "".join(
                draw.choices(characters[number % 5], k=draw.randrange((40, 40, 300, 80)[number % 5]))
            ).encode()
        tokens = [FIRST_BYTE + byte for byte in data]
        masked = draw.choice((0, 0.15, 1))
        yield [MASK if draw.random() < masked else token for token in tokens]
