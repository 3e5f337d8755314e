"""Per-frame perceptual distance by a frozen image network (MAGVIT section 3.1, `image perceptual loss`)."""

import lpips
import torch
from einops import rearrange
from torch import Tensor, nn

from magvit_scale.config import Perceptual, Refusal

RANDOM_SEED = 0


class PerceptualLoss(nn.Module):
    """Mean LPIPS over all frames; its parameters are frozen, the gradient reaches the clips only."""

    def __init__(self, kind: Perceptual):
        super().__init__()
        if kind != "random":
            raise Refusal(f"loss.perceptual={kind}: pretrained weights cannot be fetched yet; use random or none")
        # The global generator is put back, and an untrained network does not depend on what was drawn before it.
        # AlexNet, since untrained features are no better for being VGG16's 20 times dearer ones.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(RANDOM_SEED)
            self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
        self.requires_grad_(False)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """Scalar distance of 'b 3 t h w' clips in [0, 1]."""
        frames = (rearrange(clip, "b c t h w -> (b t) c h w") for clip in (real, fake))
        return self.network(*frames, normalize=True).mean()
