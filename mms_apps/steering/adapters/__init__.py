"""Where an embedding enters a diffusers pipeline.

| pipeline | call argument | in the denoiser |
|---|---|---|
| StableUnCLIPImg2Img | image_embeds | class_labels: noised, then the noise level |
| KandinskyV22, img2img, ControlNet | image_embeds | added_cond_kwargs["image_embeds"] |
| IP-Adapter on SD 1.5, SDXL, ControlNet | ip_adapter_image_embeds | the same, in a list |
| IP-Adapter on FLUX | ip_adapter_image_embeds | joint_attention_kwargs, in a list |
| SDXL without an IP-Adapter | pooled_prompt_embeds | added_cond_kwargs["text_embeds"] |
| Stable Diffusion 1 and 2, a prompt alone | prompt_embeds | encoder_hidden_states |
| Stable Diffusion 3 | pooled_prompt_embeds | pooled_projections |

Embeddings are raw, not normalised: the pipelines expect the length that the encoder gives.
"""
