"""What other trainers call a setting (kohya-ss/sd-scripts, diffusers' training scripts and their kin), and what it is
here; where it is nothing here, why."""

from __future__ import annotations

# Ours, and the names that others have for it. Names are compared in lower case, with `_` for `-`.
OTHERS = {
    "pretrained_model": (
        "pretrained_model_name_or_path model_name_or_path pretrained_model_path base_model base_model_name model "
        "model_path model_id model_name ckpt ckpt_path checkpoint_path unet_path transformer_path "
        "pretrained_transformer_model_name_or_path"
    ),
    "encoders": (
        "vae vae_path pretrained_vae_model_name_or_path ae text_encoder text_encoder_path clip_l clip_g t5xxl t5 "
        "clip_path"
    ),
    "tokenizer": "tokenizer_name tokenizer_path tokenizer_cache_dir",
    "data.path": (
        "train_data_dir instance_data_dir data_dir dataset_dir dataset_path image_dir images_dir folder_path "
        "in_json dataset_config train_data data_path"
    ),
    "data": "dataset datasets train_dataset",
    "data.hub_id": "dataset_name dataset_id hub_dataset",
    "data.subset": "dataset_config_name dataset_subset subset_name",
    "data.split": "dataset_split dataset_split_name train_split",
    "data.columns.prompt": "caption_column prompt_column text_column",
    "data.columns.chosen": "image_column chosen_column preferred_column",
    "data.columns.rejected": "rejected_column dispreferred_column",
    "data.max_pairs": "max_train_samples num_samples max_samples",
    "network_rank": "rank lora_rank network_dim lora_dim lora_r dim linear",
    "network_alpha": "lora_alpha linear_alpha lora_network_alpha",
    "network_target_modules": "target_modules lora_target_modules lora_layers lora_modules",
    "training_method": "network_module network_type train_method use_lora adapter_type",
    "learning_rate": "lr unet_lr learning_rate_unet transformer_lr base_lr init_lr",
    "lr_scheduler": "lr_scheduler_type scheduler_type lr_schedule",
    "lr_warmup_steps": "warmup_steps num_warmup_steps warmup lr_warmup",
    "optimizer": "optimizer_type optim optimiser optimizer_name",
    "weight_decay": "adam_weight_decay wd decay",
    "max_grad_norm": "clip_grad_norm gradient_clip_val gradient_clipping grad_clip max_norm",
    "ema_decay": "use_ema ema ema_config ema_rate",
    "train_batch_size": "batch_size per_device_train_batch_size batch micro_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum grad_accum_steps accumulate_grad_batches",
    "max_train_steps": "steps train_steps max_steps num_train_steps total_steps iterations",
    "checkpointing_steps": "save_every_n_steps save_every save_steps save_interval save_freq",
    "checkpoints_total_limit": (
        "save_last_n_steps save_last_n_steps_state save_last_n_epochs save_total_limit max_step_saves_to_keep "
        "checkpoint_limit"
    ),
    "resume_from_checkpoint": "resume resume_from resume_path load_state",
    "output_dir": "output output_path output_folder out_dir save_dir training_folder",
    "cache_dir": "latent_cache_dir cache_path cache_latents_dir",
    "compile": "torch_compile use_torch_compile compile_model dynamo_backend",
    "report_to": "log_with logger tracker",
    "sample_every": "sample_every_n_steps validation_epochs sample_every_n_epochs preview_steps",
    "sample_prompts": "validation_prompt validation_prompts prompts sample_prompt preview_prompts",
    "sample_steps": "num_inference_steps sampling_steps",
    "validation_pairs": "num_validation_images validation_split validation_samples",
    "resolution": "image_size img_size size width height max_resolution train_resolution",
    "bucket_reso_steps": "bucket_step bucket_resolution_steps",
    "min_bucket_reso": "min_bucket_resolution bucket_min_resolution",
    "max_bucket_reso": "max_bucket_resolution bucket_max_resolution",
    "mixed_precision": "precision dtype train_dtype torch_dtype full_bf16 full_fp16",
    "weight_dtype": "param_dtype model_dtype save_dtype",
    "base_quantization": "quantize quantization load_in_4bit load_in_8bit bnb_4bit_quant_type base_model_precision",
    "memory": "lowram low_vram lowvram medvram low_memory cpu_offload offload enable_model_cpu_offload",
    "null_prompt_prob": "proportion_empty_prompts cond_dropout uncond_prob",
    "objective": "loss_type loss train_type preference_loss",
    "seed": "random_seed noise_seed",
    "family": "model_type arch architecture model_arch base_type",
}
# Why there is none, or what to set instead, and the names that this is said of.
REASONS = {
    "set `optimizer: adamw8bit`": "use_8bit_adam use_8bit_adamw adam8bit",
    "set `optimizer: adafactor`": "use_adafactor adafactor",
    "set `prediction_type: v_prediction`": "v_parameterization v_pred v_prediction",
    "did you mean `beta`? Diffusion-DPO's code halves its own, so 5000 there is 2500 here": "beta_dpo dpo_beta",
    "the pair is named after the last folder of `output_dir`; set that": "output_name save_name run_name name",
    "the length is counted in optimizer steps; set `max_train_steps`": (
        "num_train_epochs max_train_epochs epochs num_epochs epoch num_repeats dataset_repeats"
    ),
    "set `checkpointing_steps`, in optimizer steps": "save_every_n_epochs save_n_epoch_ratio save_every_epoch",
    "set `lr_warmup_steps`, in optimizer steps": "lr_warmup_ratio warmup_ratio",
    "`lr_scheduler` has constant, linear and cosine; set one of those": "lr_scheduler_num_cycles lr_scheduler_power",
    "`adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay` are settings of their own; set those": (
        "optimizer_args optimizer_params betas"
    ),
    "the objective is the paper's, whose noise and timesteps no setting changes; leave it out": (
        "noise_offset noise_offset_type adaptive_noise_scale ip_noise_gamma multires_noise_iterations "
        "multires_noise_discount min_snr_gamma snr_gamma debiased_estimation_loss huber_c huber_schedule "
        "scale_v_pred_loss_like_noise_pred v_pred_like_loss min_timestep max_timestep timestep_sampling "
        "timestep_type weighting_scheme logit_mean logit_std mode_scale discrete_flow_shift shift sigmoid_scale "
        "input_perturbation dream_training model_prediction_type masked_loss"
    ),
    "that follows from the base's own files; leave it out": (
        "zero_terminal_snr rescale_betas_zero_snr clip_skip v2 sdxl max_token_length variant is_v_pred "
        "non_ema_revision noise_scheduler vae_scale_factor"
    ),
    "text encoders are never trained here, as both members share them; leave it out": (
        "text_encoder_lr learning_rate_te learning_rate_te1 learning_rate_te2 train_text_encoder "
        "train_text_encoder_ti network_train_unet_only network_train_text_encoder_only stop_text_encoder_training "
        "text_encoder_learning_rate"
    ),
    "pictures are only scaled and cut to their bucket; leave it out": (
        "random_flip flip_aug color_aug random_crop center_crop face_crop_aug_range image_interpolation_mode "
        "bucket_no_upscale"
    ),
    "captions are taken as they are, one for each pair; leave it out": (
        "shuffle_caption keep_tokens keep_tokens_separator caption_tag_dropout_rate caption_extension "
        "caption_prefix caption_suffix caption_separator secondary_separator enable_wildcard token_warmup_step "
        "weighted_captions instance_prompt trigger_word caption_ext default_caption"
    ),
    "CHATS has `null_prompt_prob`, for the dispreferred model alone; set that": (
        "caption_dropout_rate caption_dropout_every_n_epochs"
    ),
    "pairs need no pictures beside them; leave it out": (
        "reg_data_dir class_data_dir class_prompt num_class_images with_prior_preservation prior_loss_weight reg"
    ),
    "PyTorch's own attention is always used; leave it out": (
        "xformers enable_xformers_memory_efficient_attention sdpa mem_eff_attn flash_attn use_flash_attention "
        "attention_mode allow_tf32 cross_attention"
    ),
    "latents and prompts are always cached in `cache_dir` (`train --no-cache` does without); leave it out": (
        "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk "
        "skip_cache_check vae_batch_size cache_text_embeddings no_cache"
    ),
    "the pair is written as .safetensors, in the precision of `export --dtype`; leave it out": (
        "save_precision save_model_as no_metadata training_comment metadata_title metadata_author"
    ),
    "the launcher decides that (`accelerate launch`); leave it out": (
        "local_rank num_processes multi_gpu gpu_ids device num_gpus deepspeed ddp_timeout"
    ),
    "as many threads as the machine has read the pictures; leave it out": (
        "dataloader_num_workers max_data_loader_n_workers num_workers persistent_data_loader_workers"
    ),
    "nothing is uploaded; leave it out": "push_to_hub hub_model_id hub_token huggingface_repo_id huggingface_token",
    "adapters start from nothing; merge the LoRA into the base first and train on that": (
        "network_weights lora_weights dim_from_weights base_weights"
    ),
    "adapters have one rank; layers go by `network_target_modules`": (
        "conv_dim conv_rank conv_alpha conv block_dims block_alphas network_dropout lora_dropout rank_dropout "
        "module_dropout scale_weight_norms use_dora dora use_rslora network_args"
    ),
    "`objective` supervised_chosen is training on the chosen pictures alone; set that": "sft supervised",
    "where memory is short set `memory: low`; nothing else is moved or made smaller": (
        "blocks_to_swap block_swap fp8_base fp8_base_unet gradient_checkpointing_offload"
    ),
    "logs and previews go to `output_dir`; leave it out": (
        "logging_dir log_prefix log_tracker_name tracker_project_name wandb_run_name"
    ),
}

_OURS = {other: ours for ours, others in OTHERS.items() for other in others.split()}
_WHY = {other: why for why, others in REASONS.items() for other in others.split()}


def other_name(name: str) -> str | None:
    """The way out for another trainer's name of a setting, to follow "`name` is not a setting; "; None for a name that
    is not known."""
    key = name.strip().lower().replace("-", "_").lstrip("_")
    if key in _OURS:
        return f"did you mean `{_OURS[key]}`?"
    return _WHY.get(key)
