"""Training a small image generator on the embedded world: a `StableUnCLIPImg2ImgPipeline` folder.

First the autoencoder, then its decoder alone, then the denoiser on the latents, conditioned on an
open_clip image embedding (noised as the pipeline does) and on the prompt. Each is left out at
times: both, for guidance; the prompt, so that a reference alone works; the embedding, drowned in
noise, so that a prompt alone works (`noise_level` of PROMPT_ALONE). Last the denoiser again, taught
by what its own drawings show.
"""
