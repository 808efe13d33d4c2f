"The decoder: every encoder, every combination of sources, sizes, gradients."
import itertools

import pytest
import torch

from bonehisto.decoder import create_decoder
from bonehisto.encoder import create_encoder


@pytest.fixture(scope="module", params=["micro", "tiny", "small"])
def encoder(request): return create_encoder(request.param).eval()


def run(encoder, decoder, height, width, batch=1, seed=0):
    x = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(): tokens = encoder.tokens(x, decoder.shape.depths)
    return x, decoder(x, tokens)


@pytest.mark.parametrize("classes", [2, 3, 4, 7])
def test_logits_have_the_image_size_and_the_tables_classes(encoder, classes):
    side = 4 * encoder.patch
    for height, width in ((side, side), (side, 3 * side // 2 // encoder.patch * encoder.patch)):
        _, logits = run(encoder, create_decoder(encoder, classes), height, width)
        assert logits.shape == (1, classes, height, width) and torch.isfinite(logits).all()


@pytest.mark.parametrize("stem,attention,fusion", list(itertools.product([True, False], repeat=3)))
def test_any_source_can_be_left_out_and_all_that_is_left_learns(encoder, stem, attention, fusion):
    decoder = create_decoder(encoder, 3, stem=stem, attention=attention, fusion=fusion)
    _, logits = run(encoder, decoder, 4 * encoder.patch, 4 * encoder.patch)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in decoder.parameters())


def test_each_source_reaches_the_logits():
    encoder = create_encoder("micro").eval(); decoder = create_decoder(encoder, 3).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = encoder.tokens(x, decoder.shape.depths); base = decoder(x, tokens)
        for k in range(len(tokens.patches)):
            kept = tokens.patches[k]; tokens.patches[k] = kept.roll(1, 1)
            assert not torch.allclose(decoder(x, tokens), base), f"depth {k} has no effect"
            tokens.patches[k] = kept
        attention = tokens.attention; tokens.attention = attention.roll(1, -1)
        assert not torch.allclose(decoder(x, tokens), base)
        tokens.attention = attention
        assert torch.equal(decoder(x, tokens), base)


def test_without_the_stem_pixels_come_in_through_tokens_alone():
    encoder = create_encoder("micro").eval(); decoder = create_decoder(encoder, 3, stem=False).eval()
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        tokens = encoder.tokens(x, decoder.shape.depths)
        assert torch.equal(decoder(x, tokens), decoder(1 - x, tokens))


def test_a_tile_does_not_depend_on_the_others_of_its_batch():
    encoder = create_encoder("micro").eval(); decoder = create_decoder(encoder, 3).eval()
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        together = decoder(x, encoder.tokens(x, decoder.shape.depths))
        alone = decoder(x[1:2], encoder.tokens(x[1:2], decoder.shape.depths))
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_decoder_and_leaves_the_global_draw_alone():
    encoder = create_encoder("micro")
    torch.manual_seed(5); expected = torch.rand(3); torch.manual_seed(5)
    a, b, c = (create_decoder(encoder, 3, seed=s).state_dict() for s in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_a_line_thinner_than_a_patch_can_be_drawn():
    "What the pixel stem is for: a line of 4 px, a quarter of a patch, learnt to the pixel from one image."
    encoder = create_encoder("micro").eval(); truth = torch.zeros(1, 64, 64, dtype=torch.long); truth[:, 29:33] = 1
    x = (truth[:, None] * .3 + .3).float().expand(-1, 3, -1, -1).clone(); x[:, :, 45:60] = .45  # and a wide band that is not one
    decoder = create_decoder(encoder, 2); opt = torch.optim.AdamW(decoder.parameters(), 3e-3)
    with torch.no_grad(): tokens = encoder.tokens(x, decoder.shape.depths)
    for _ in range(80):
        loss = torch.nn.functional.cross_entropy(decoder(x, tokens), truth); opt.zero_grad(); loss.backward(); opt.step()
    assert (decoder(x, tokens).argmax(1) != truth).float().mean() < .01


@pytest.mark.parametrize("shape", [dict(classes=1), dict(classes=3, widths=(8, 8), stem_widths=(8,))])
def test_impossible_shapes_are_refused(shape):
    encoder = create_encoder("micro")
    with pytest.raises(ValueError): create_decoder(encoder, shape.pop("classes"), **shape)
