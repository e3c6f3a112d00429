"""What a generator is made of and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AutoencoderTraining:
    """Adam under a cosine, on images drawn afresh at every step.

    Attributes:
        edge_weight: of the L1 distance of neighbouring pixels' differences.
        kl_weight: of the latents' KL divergence, summed over an image; above 1e-6 it blurs.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 12
    steps: int = 3000
    batch: int = 16
    learning_rate: float = 1.5e-3
    edge_weight: float = 1.0
    kl_weight: float = 1e-6


@dataclass(frozen=True)
class DecoderTraining:
    """The decoder further, the encoder as it is: Adam under a cosine.

    Attributes:
        perceptual_weight: of how different the image encoder's tower finds a picture.
    """

    steps: int = 5000
    batch: int = 16
    learning_rate: float = 1.5e-3
    perceptual_weight: float = 0.3


@dataclass(frozen=True)
class DenoiserTraining:
    """Adam at a constant rate that falls to zero in the end; the weights' moving average is what
    generates.

    Noisy timesteps come up more often, in proportion to the timestep: there the embedding decides
    what is drawn.

    Attributes:
        steps: can be raised later; a training that was cut off or kept goes on, at the rate that
            the new number of steps gives.
        fall: share of the steps, the last ones, in which the rate falls.
        draws: of each drawing's planted factors.
        people: how often a drawing of a person comes up, to 1 for any other.
        drop_both: share of examples without embedding and prompt.
        drop_prompt: share of the prompts left out.
        drop_image: share of embeddings drowned in noise.
        noisy_image: share of embeddings under some noise.
    """

    channels: tuple[int, ...] = (64, 96, 128)
    time_channels: int = 320
    layers: int = 1
    heads: int = 4
    steps: int = 26_000
    batch: int = 64
    learning_rate: float = 6e-4
    fall: float = 0.4
    average_decay: float = 0.999
    draws: int = 8
    people: float = 2.0
    drop_both: float = 0.1
    drop_prompt: float = 0.5
    drop_image: float = 0.1
    noisy_image: float = 0.1


@dataclass(frozen=True)
class RefinementTraining:
    """The denoiser further, taught by what its own drawings show: Adam at a rate that falls to
    zero; the weights' moving average is what generates.

    Attributes:
        steps: can be raised later, as the denoiser's can.
        batch: examples as the denoiser has been trained on, in every step.
        own: drawings of its own that are under way beside them.
        own_steps: that each of these takes.
        guidance: under which they are drawn.
        mixed: share of them that are asked for a mixture of two drawings' embeddings, as edits ask
            for what no drawing has.
        reading_weight: of the distance between the embedding of what is drawn and the one that was
            asked for.
    """

    steps: int = 3600
    batch: int = 64
    own: int = 64
    own_steps: int = 14
    guidance: float = 2.0
    mixed: float = 0.5
    learning_rate: float = 1e-4
    average_decay: float = 0.99
    reading_weight: float = 1.0


@dataclass(frozen=True)
class GeneratorTraining:
    """What the generator is made of and how it is trained.

    Attributes:
        encoder: the embedded encoder whose image embeddings condition it.
        prior_draws: of each drawing's planted factors, for the prior.
        start: another generator, `embedded` or a folder, to start from: its autoencoder and its
            denoiser are kept, and refined.
    """

    encoder: str = "embedded-ssl"
    autoencoder: AutoencoderTraining = AutoencoderTraining()
    decoder: DecoderTraining = DecoderTraining()
    denoiser: DenoiserTraining = DenoiserTraining()
    refinement: RefinementTraining = RefinementTraining()
    prior_draws: int = 4
    seed: int = 0
    start: str | None = None
