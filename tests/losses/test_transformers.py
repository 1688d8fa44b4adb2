"""InfoNCE and SigLIP against the losses inside the models of transformers, on their features."""

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
)

from counterpoint.losses.infonce import InfoNCE
from counterpoint.losses.siglip import SigLIP

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT = SMALL | {"vocab_size": 50, "max_position_embeddings": 6}
VISION = SMALL | {"image_size": 8, "patch_size": 4}


def outputs(model):
    g = torch.Generator().manual_seed(0)
    pixels = torch.randn(9, 3, 8, 8, generator=g, dtype=torch.float64)
    ids = torch.randint(1, 49, (9, 6), generator=g)
    return model.double().eval()(input_ids=ids, pixel_values=pixels, return_loss=True)


def features(found, **scalars):
    return {"image": found.image_embeds, "text": found.text_embeds} | scalars


def test_clip():
    torch.manual_seed(0)
    text = CLIPTextConfig(**TEXT, bos_token_id=48, eos_token_id=49)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=CLIPVisionConfig(**VISION).to_dict()
    )
    model = CLIPModel(config)
    found = outputs(model)
    scale = model.logit_scale.exp().view(1)
    (ours,) = InfoNCE()(features(found, logit_scale=scale), {}).values()
    torch.testing.assert_close(ours, found.loss, rtol=1e-10, atol=0)
    assert found.loss > 0.1


def test_siglip():
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=SiglipTextConfig(**TEXT).to_dict(),
        vision_config=SiglipVisionConfig(**VISION).to_dict(),
    )
    model = SiglipModel(config)
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-3.0)
    found = outputs(model)
    scalars = {"logit_scale": model.logit_scale.exp().view(1), "logit_bias": model.logit_bias}
    (ours,) = SigLIP()(features(found, **scalars), {}).values()
    torch.testing.assert_close(ours, found.loss, rtol=1e-10, atol=0)
