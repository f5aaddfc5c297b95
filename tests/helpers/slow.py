"""The tests that `make test-fast` leaves out, by file: functions, or `*` for all of them.

Together they take nine tenths of the processor time. What loads scipy, torchvision, timm or W&B alone is here, too.
"""

SLOW = {
    "test_repeatable.py": "*",
    "test_api.py": """
        test_three_lines_of_python_give_the_bytes_of_the_command
        test_a_finished_run_is_read_and_changed_weights_are_another_run
        test_given_images_may_take_the_settings_of_a_dataset
        test_the_page_about_python_runs
    """,
    "test_on_a_gpu.py": """
        test_a_purifier
        test_an_attack
    """,
    "board/test_check.py": "*",
    "board/test_ranking.py": """
        test_a_committed_entry_is_accepted
    """,
    "evaluation/test_budget.py": "*",
    "runs/test_generator.py": """
        test_all_noise_of_a_run_is_of_one_version
    """,
    "output/test_status.py": "*",
    "runs/test_cost.py": """
        test_a_convolution_by_hand
        test_a_gpu_needs_neither_itself_nor_files
        test_a_run_tells_the_estimate_the_workers_of_its_engine
        test_hours_are_flops_over_the_assumed_speed
        test_no_network_of_a_purifier_needs_a_file
        test_nothing_is_attacked_or_written
        test_on_the_meta_device_the_same_is_counted_as_in_a_real_call
        test_only_a_long_run_says_how_long
        test_the_cost_asks_no_cluster_and_says_whose_workers_it_means
        test_the_estimate_is_the_time_that_the_run_then_takes
        test_the_estimate_of_a_shard_is_its_share
        test_twice_the_workers_of_the_engine_take_half_the_time
        test_without_room_calls_are_computed_twice
    """,
    "attacks/test_apgd.py": """
        test_l2_reaches_the_closed_form_optimum
        test_linf_reaches_the_corner_with_the_box_active
        test_rows_do_not_depend_on_batch_mates_order_or_refills
        test_the_trajectory_is_the_published_one
        test_the_yaml_holds_the_papers_values
    """,
    "attacks/test_attacks.py": """
        test_contract
    """,
    "attacks/test_shards.py": "*",
    "attacks/test_decision.py": """
        test_a_decision_is_the_majority_of_its_samples
        test_candidates_lie_in_the_ball_and_break_the_image_where_the_boundary_does
        test_it_works_where_the_gradient_is_zero
        test_rows_do_not_depend_on_batch_mates_order_or_their_steps
        test_the_distance_nears_that_of_the_closed_form
        test_the_work_is_counted_and_the_count_ends
    """,
    "attacks/test_diffattack.py": """
        test_gradient_equals_central_differences
        test_the_term_rises_under_the_attack
        test_without_the_term_it_is_apgd_bit_for_bit
    """,
    "attacks/test_diffhammer.py": """
        test_rows_do_not_depend_on_batch_mates_order_or_their_steps
        test_the_step_is_fed_back
        test_where_mean_gradients_cancel_the_selective_attack_succeeds
    """,
    "attacks/test_spsa.py": """
        test_linf_reaches_the_corner_of_a_linear_model
        test_slope_is_the_gradient
    """,
    "attacks/test_square.py": """
        test_l2_nears_the_optimum
        test_linf_reaches_the_corner
        test_margin_never_falls_and_rows_stand_alone
        test_noise_does_not_shut_the_search
    """,
    "attacks/test_target.py": """
        test_apgd_raises_the_target_above_what_the_untargeted_attack_reaches
        test_the_loss_of_the_target_is_minimized
        test_two_classes_have_the_optimum_of_the_untargeted_attack
        test_without_a_target_keys_stay
    """,
    "attacks/test_union.py": """
        test_autoattack_fixed_is_the_union
        test_upstream_asks_for_as_much_as_is_counted_and_less_of_broken_images
        test_upstream_is_marked
        test_upstream_is_the_package
    """,
    "audit/test_audit.py": """
        test_a_finished_run_is_audited_on_demand_and_keeps_its_rows
        test_a_job_is_audited_once
        test_a_row_says_what_its_audit_found_and_does_not_change
        test_a_wrong_value_of_audit_is_one_line
        test_auto_is_for_long_jobs
        test_command
        test_commands_errors_are_one_line
        test_the_quick_audit_of_the_benchmark_finds_nothing_broken
    """,
    "audit/test_audit_authors.py": """
        test_a_purifier_of_complex_numbers_and_one_that_asks_the_classifier_are_audited
        test_an_identity_is_named_and_the_exact_gradient_finds_more
        test_mimics_authors_attack_another_purifier
        test_mimics_own_gradient_is_zero_and_the_smoothed_sign_finds_more
        test_the_adjoint_of_ldsde_fails_on_digits
        test_the_honest_gradient_has_no_failure
    """,
    "audit/test_audit_budgets.py": """
        test_a_union_with_a_part_that_uses_values_alone_is_compared
        test_a_union_with_an_exact_part_can_be_broken
        test_autoattack_weaker_than_its_parts
        test_black_box_stronger_than_a_broken_white_box
        test_eps_sweep_names_a_broken_gradient_and_a_weak_budget
        test_more_work_never_helps_the_defender
        test_no_attack_is_nothing_to_check
        test_null_control_of_a_sound_run
    """,
    "audit/test_audit_convergence.py": """
        test_a_sound_defense_has_no_failure
        test_an_attack_that_was_broken_off_is_found
        test_an_optimizer_that_never_moves_is_found
    """,
    "audit/test_audit_faults.py": """
        test_a_planted_fault_is_found_by_the_check_named_for_it
        test_of_a_sound_run_no_check_fails
        test_of_a_sound_run_the_quick_audit_fails_no_check
        test_of_sound_parts_that_are_not_in_the_tree_the_quick_audit_fails_no_check
    """,
    "audit/test_audit_gradients.py": """
        test_a_partly_detached_purifier_is_found
        test_a_sound_defense_has_no_failure
        test_every_attack_can_be_audited
        test_parts_of_a_union_have_gradient_modes_of_their_own
    """,
    "audit/test_audit_independence.py": """
        test_a_smooth_noisy_purifier_passes
        test_a_threat_model_that_is_no_ball_has_no_radius_to_reach
        test_noise_in_a_part_of_the_ball_is_compared_with_noise_in_that_part
        test_noise_of_the_threat_model_has_its_size
    """,
    "audit/test_audit_precision.py": """
        test_a_bfloat16_attack_has_no_failure
    """,
    "audit/test_audit_randomness.py": """
        test_clean_images_that_the_attacked_defense_decides_otherwise
        test_declared_surrogate_of_another_step_count_passes
        test_no_kind_of_run_fails
        test_noise_levels_of_a_surrogate_of_fewer_rounds
        test_noise_that_is_not_the_streams
        test_sound_run_passes
        test_state_outside_the_ball
    """,
    "commands/test_tables.py": """
        test_the_committed_tables_come_from_the_committed_runs
    """,
    "contracts/test_declared.py": """
        test_a_declaration_is_no_argument_and_in_no_key
        test_a_purifier_that_names_its_gradient_lacks_no_surrogate
        test_the_default_protocol_takes_the_gradient_that_a_purifier_names
        test_the_row_says_what_is_declared_and_how_it_is_attacked
    """,
    "certification/test_bounds.py": "*",
    "certification/test_certified.py": "*",
    "certification/test_rows.py": """
        test_a_file_that_is_torn_anywhere_ends_with_the_same_bytes
    """,
    "certification/test_smoothing.py": """
        test_a_linear_classifiers_radius_is_its_margin
    """,
    "defense/test_defense.py": """
        test_few_images_get_the_samples_of_all
    """,
    "defense/test_diffusion_classifier.py": """
        test_a_purifier_with_an_attention_mask_is_refused
        test_an_image_stands_alone
        test_contract
        test_it_is_asked_like_every_randomized_defense
        test_network_evaluations_are_classes_times_levels
        test_recompute_equals_store_bit_for_bit
        test_samples_have_the_expected_logits
        test_standard_accuracy_of_one_sample
        test_the_gradient_equals_central_differences_and_needs_no_mode
        test_the_identity_in_place_of_the_purification_keeps_the_classifiers_derivative
    """,
    "defense/test_gradients.py": """
        test_adjoint_mode_attacks_the_same_purification_with_another_gradient
        test_eot_gradient_is_the_mean_over_single_samples
        test_full_gradient_equals_central_differences
        test_recompute_equals_store_bit_for_bit
        test_straight_through_clamp_is_not_the_derivative
    """,
    "defense/test_memory.py": """
        test_the_bytes_are_those_that_the_allocator_does_not_get_back
        test_what_auto_keeps_fits_into_half_of_the_free_memory
    """,
    "diffusion/test_checkpointing.py": """
        test_a_guided_purifier_has_the_same_bits_in_both_memory_modes
        test_the_gradient_of_a_guided_purifier_equals_central_differences
        test_torchs_own_check_of_first_and_second_derivatives
    """,
    "diffusion/test_denoisers.py": """
        test_gaussian_is_bayes_rule
    """,
    "diffusion/test_sampling.py": """
        test_chain_of_a_gaussian_denoiser_samples_as_the_recursion_says
    """,
    "diffusion/test_two_moons.py": "*",
    "docs/test_defenses.py": "*",
    "docs/test_extending.py": """
        test_a_faulty_plug_in_fails_its_contract_in_sentences
        test_a_plug_in_is_found_in_the_working_folder
        test_a_run_with_an_attack_without_a_method_is_one_line
        test_a_task_trains_outside_the_tree
        test_the_audit_warns_of_what_is_declared_and_does_not_fail
        test_an_example_runs_outside_the_tree
        test_what_is_outside_the_tree_passes_the_contract_tests
    """,
    "docs/test_results_format.py": "*",
    "docs/test_reference.py": """
        test_generated_lists_are_up_to_date
    """,
    "evaluation/test_evaluate.py": """
        test_attack_and_scoring_share_no_noise
        test_other_numbers_of_slots_have_the_same_noise
        test_resumed_rows_fill_the_gaps
        test_rows_are_byte_equal_across_order_split_and_padding
        test_undefended_falls_and_null_does_not
    """,
    "evaluation/test_slots.py": """
        test_rows_are_equal_with_and_without_refill
        test_the_judge_sees_where_the_attack_stands
    """,
    "evaluation/test_snapshot.py": """
        test_every_attack_goes_on_from_its_state
    """,
    "evaluation/test_work.py": "*",
    "figures/test_figures.py": """
        test_a_redraw_gives_the_committed_bytes
        test_what_is_drawn_is_what_is_stored
    """,
    "files/test_cache.py": """
        test_several_processes_note_without_losing_anything
    """,
    "files/test_fetch.py": """
        test_a_silent_server
        test_the_command
        test_the_list
        test_the_list_has_plugins
        test_two_processes_download_once
    """,
    "nets/test_backward.py": """
        test_derivatives_have_the_bits_of_plain_autograd
        test_less_is_kept
    """,
    "nets/test_nets.py": """
        test_attention_has_torchs_own_bits_and_a_second_derivative
        test_the_attribute_net_scales_and_pools_as_published
        test_the_embedded_denoiser_beats_every_linear_one
    """,
    "nets/test_parity.py": """
        test_second_derivatives
    """,
    "nets/test_parity_harness.py": """
        test_a_folder_outside_the_repository
    """,
    "output/test_damaged.py": """
        test_sixty_damaged_folders
        test_ten_of_them_in_processes_of_their_own
    """,
    "output/test_rescore.py": """
        test_another_defense_is_a_column
        test_command_agrees_with_the_run
        test_command_finds_images_that_are_not_the_runs
        test_fresh_samples_are_other_samples_of_the_same_defense
        test_what_cannot_be_scored_again_is_said_in_one_line
    """,
    "output/test_tracking.py": "*",
    "runs/test_tune.py": "*",
    "runs/test_mirrored.py": "*",
    "commands/test_dashboard.py": "*",
    "page/test_browser.py": "*",
    "page/test_page.py": """
        test_a_command_states_what_was_changed
        test_the_command_of_an_archived_run_gives_its_key
        test_the_page_holds_every_row_and_the_pictures
    """,
    "purifiers/test_diffpure.py": """
        test_one_shot_is_the_posterior_mean_of_smoothed_images
    """,
    "purifiers/test_contrastive.py": """
        test_the_batch_form_is_the_original_code
        test_the_head_learns_and_the_pull_is_the_gradient_of_the_loss
        test_values_are_equal_in_all_gradient_variants_and_without_autograd
    """,
    "purifiers/test_flowpure.py": """
        test_many_steps_follow_the_exact_flow
    """,
    "purifiers/test_freqpure.py": """
        test_the_gradient_of_the_exchange_is_exact
        test_without_a_guide_it_is_the_plain_chain_bit_for_bit
    """,
    "purifiers/test_likelihood.py": """
        test_adam_is_torchs
        test_many_small_steps_end_where_the_expected_error_is_least
    """,
    "purifiers/test_mani.py": """
        test_the_gradient_of_the_noise_is_exact_and_an_image_stands_alone
        test_the_noise_has_unit_power_on_average_over_an_image
    """,
    "purifiers/test_ssni.py": """
        test_the_gradient_goes_through_the_score_norm
        test_the_yaml_has_no_score_norms_for_denoisers_that_were_not_measured
        test_with_one_time_for_all_it_is_diffpure_bit_for_bit
    """,
    "purifiers/test_atop.py": """
        test_every_form_of_the_embedded_network_keeps_what_a_digit_is
    """,
    "purifiers/test_impure.py": """
        test_the_embedded_network_keeps_what_a_digit_is
    """,
    "purifiers/test_menet.py": """
        test_a_classifier_that_was_not_trained_on_its_images_is_said
        test_the_exact_gradient_equals_central_differences
    """,
    "purifiers/test_pixeldefend.py": """
        test_it_has_no_gradient_and_says_which_attack_to_take
        test_the_embedded_network_knows_digits_and_the_purifier_keeps_them
    """,
    "purifiers/test_purifiers.py": """
        test_contract
        test_official_attack_gradient_never_sees_the_mask
        test_official_mask_input_bug_feeds_normalized_pm1
    """,
    "purifiers/test_gdmp.py": """
        test_the_gradient_of_the_original_networks
        test_the_yaml_holds_the_values_of_the_released_code
    """,
    "purifiers/test_mimic.py": """
        test_both_memory_modes_have_the_gradient_through_the_network
        test_the_authors_attack_is_plain_diffpure
        test_the_methods_own_gradient_is_zero_and_the_yaml_names_another
        test_the_soft_gradient_equals_central_differences
    """,
    "purifiers/test_scoreopt.py": """
        test_form_xt_ends_where_the_predicted_noise_is_the_one_that_was_added
    """,
    "runs/test_bad_commands.py": "*",
    "runs/test_caveats.py": """
        test_a_change_inside_a_variant_of_the_protocols_attack_is_a_departure
        test_a_change_of_a_scaled_value_is_a_departure
        test_a_protocol_as_it_is_defined_has_no_departure
        test_a_purifier_without_a_surrogate_is_attacked_exactly_under_the_default_protocol
        test_a_scaled_surrogate_is_named_where_it_is_attacked
        test_a_strict_union_without_the_mask_attacks_is_a_caveat
        test_a_surrogate_is_missed_only_where_the_protocol_had_to_do_without_it
        test_differences_between_attacked_and_scored
        test_the_attacks_nfe_is_that_of_what_it_queries
        test_the_command_line_wins_over_a_protocol_and_it_is_a_departure
        test_the_gradient_modes_of_an_attack
        test_what_a_protocol_scales_does_not_depend_on_the_command
        test_what_digits_scale_stands_beside_the_values_for_cifar10
    """,
    "runs/test_cells.py": "*",
    "runs/test_configs.py": """
        test_attacks_that_add_to_a_protocols_own
        test_a_preset_and_the_same_command_share_a_folder
        test_a_preset_of_another_defense_finds_the_figures_that_it_prints
        test_an_exchanged_dataset_gives_what_composition_gives
        test_every_dataset_classifier_and_denoiser_binds
        test_every_option_composes_and_binds_for_every_dataset
        test_every_preset_composes_narrows_and_says_its_command
        test_gradient_variants_and_tables_are_no_arguments
        test_missing_files_are_one_line_that_says_all
        test_nfe_of_the_configured_grids
        test_the_papers_command_is_the_papers_budget
    """,
    "runs/test_early.py": "*",
    "runs/test_engines.py": """
        test_two_gpus_share_one_queue_and_the_parent_keeps_no_weights
    """,
    "runs/test_help.py": """
        test_examples_compose
        test_help_lists_plugins
        test_imports_that_stay_light
    """,
    "runs/test_keys.py": """
        test_a_fraction_is_a_number_and_the_readme_has_the_key
        test_a_null_control_that_moved_has_another_key
        test_diffpures_later_options_count_only_where_they_differ
        test_an_option_added_later_counts_only_where_it_differs
        test_gradient_variants_count_only_where_they_are_used
        test_two_spellings_of_a_number_are_one_run
        test_what_changes_no_row_changes_no_key
        test_what_changes_rows_changes_the_key
    """,
    "runs/test_kills.py": "*",
    "runs/test_own_dataset.py": "*",
    "runs/test_papers_command.py": "*",
    "runs/test_compile.py": "*",
    "runs/test_lanes.py": "*",
    "runs/test_precision.py": """
        test_a_row_says_both
        test_bfloat16_networks_lead_about_the_same_way
        test_by_default_one_object_is_attacked_and_scored
        test_other_precisions_are_measured_on_copies_and_said_where_they_help
        test_the_key_names_a_precision_only_where_it_departs_from_the_default
        test_tf32_shares_the_networks_and_switches_the_products_for_its_own_calls_alone
        test_two_dtypes_have_networks_of_their_own
    """,
    "runs/test_protocols.py": """
        test_contract
        test_a_protocol_sets_its_attack_and_its_gradient
        test_bpda_is_the_gradient_at_the_purified_image
        test_dwbox_gives_the_attacker_the_samples_that_score
        test_hills_bpda_raises_the_loss_of_the_mean_logits
        test_noise_as_the_attack_is_the_null_control
        test_the_table_row_tells_how_it_was_decided
    """,
    "runs/test_ray.py": """
        test_a_device_of_one_machine_is_refused
        test_a_killed_driver_and_a_killed_worker_change_no_row
        test_a_machine_joins_and_another_leaves
        test_a_stopped_driver_saves_the_states_of_its_workers
    """,
    "runs/test_run.py": """
        test_a_dataset_that_no_table_names_is_an_error
        test_a_padded_batch_is_said
        test_a_run_that_was_told_to_stop_goes_on_with_its_attacks
        test_a_sweep_with_its_results_elsewhere
        test_a_users_error_is_one_line_and_code_2
        test_an_attack_without_its_parts_is_one_line
        test_eight_cells_make_eight_folders
        test_errors_as_a_user_sees_them
        test_interrupt_says_what_is_saved_and_ends_with_130
        test_killed_at_random_moments_ends_with_the_same_bytes
        test_nan_in_an_image_ends_the_run
        test_nan_in_the_logits_ends_the_run_also_in_a_worker
        test_sweep_keeps_good_cells_and_a_rerun_does_what_is_missing
        test_a_tracker_mirrors_the_row_and_costs_one_warning_at_most
        test_workers_and_shards_give_the_same_bytes
    """,
    "runs/test_submitit.py": "*",
    "runs/test_sweep.py": "*",
    "runs/test_validate.py": """
        test_check_call_names_the_key
        test_missing_key_of_a_partial
    """,
    "runs/test_workers.py": """
        test_a_state_that_does_not_fit_the_attack_is_not_used
        test_a_stopped_run_saves_its_state_and_goes_on
        test_what_goes_wrong_in_a_worker_is_raised
    """,
    "scripts/test_bench.py": "*",
    "scripts/test_gpu.py": "*",
    "scripts/test_certified_study.py": """
        test_a_tiny_study_goes_on_and_writes_its_files
        test_the_cells
    """,
    "sanitizing/test_chain.py": """
        test_an_image_does_not_depend_on_its_mates
    """,
    "sanitizing/test_sanitize.py": "*",
    "scripts/test_sanitizing_study.py": """
        test_a_tiny_study_goes_on_and_writes_its_files
        test_the_cells
        test_the_figure_of_some_cells
    """,
    "scripts/test_claim.py": """
        test_calibration_uses_images_that_no_run_uses
    """,
    "scripts/test_defenses.py": """
        test_table_and_figure
        test_the_runs_compose_and_none_is_made_twice
    """,
    "scripts/test_sweeps.py": "*",
    "scripts/test_cells.py": "*",
    "scripts/test_convergence.py": """
        test_every_attack_of_the_union_gets_the_budget
    """,
    "scripts/test_noisy_gradients.py": """
        test_every_remedy_asks_for_as_many_gradients_as_the_plain_attack
    """,
    "scripts/test_outputs.py": """
        test_the_command_that_overwrote_a_table
        test_the_main_studys_report_goes_where_it_is_told
    """,
    "statistics/test_rescoring.py": """
        test_a_raised_number_is_found
        test_honest_entries_are_hardly_ever_refused
    """,
    "statistics/test_intervals.py": """
        test_coverage
        test_paired_coverage
    """,
    "test_canvas.py": """
        test_composed_images_keep_the_rules
        test_composing_twice_gives_the_same
        test_p_ties_photographs_to_classes_and_larger_p_adds_to_smaller
        test_the_builder_makes_the_embedded_file
        test_the_classifier_reads_clean_images_and_none_that_are_attacked
        test_the_denoiser_removes_noise_from_test_images
        test_the_picture_shows_images_and_marks
        test_training_and_tied_test_images_come_from_different_parts_of_a_photograph
        test_an_image_is_a_crop_outside_its_strokes
    """,
    "test_local_datasets.py": "*",
    "test_rng.py": """
        test_distribution
        test_other_processes_see_the_same_numbers
    """,
    "threat_models/test_perceptual.py": """
        test_a_defense_without_a_gradient_gets_no_clean_image_back
        test_a_row_says_what_it_is_and_finds_no_published_one
        test_an_attack_under_a_threat_model_that_is_not_its_own
        test_batch_mates_do_not_matter
        test_every_state_is_admitted_and_the_attack_hurts
        test_no_attack_runs_under_every_threat_model_and_a_gradient_mode_under_its_attacks
        test_the_papers_settings
    """,
    "training/test_adversarial.py": """
        test_resume_is_exact
        test_the_attack_ends_in_the_worst_corner_of_a_linear_classifier
        test_the_judges_table_is_the_share_of_margins_beyond_the_perturbation
    """,
    "training/test_assets.py": "*",
    "training/test_consistency.py": """
        test_the_end_of_the_flow_has_no_loss_and_the_posterior_mean_has_one
        test_the_judge_sets_the_model_beside_the_posterior_mean
    """,
    "training/test_persistent_chains.py": """
        test_a_gaussian_energy_learns_the_variance_of_its_data
    """,
    "training/test_restoring.py": """
        test_attacked_inputs_are_the_corner_of_the_ball_of_a_linear_classifier
    """,
    "training/test_tasks.py": """
        test_eps_loss_of_gaussian_data
    """,
    "training/test_trainer.py": """
        test_a_recipe_outside_the_tree
        test_a_training_begins_with_the_given_weights_and_its_others_are_frozen
        test_classifier_from_the_command_line
        test_every_recipe_fits_its_signatures
        test_killed_and_started_again_it_ends_with_the_same_bytes
        test_mistakes_are_one_line
        test_resume_is_exact
        test_the_network_of_a_purifier_is_trained
        test_two_processes_compute_what_one_does
        test_weights_go_where_the_configuration_finds_them
    """,
    "weights/test_checkpoints.py": """
        test_a_score_sde_average_that_does_not_fit
    """,
    "weights/test_edm_pickle.py": """
        test_a_pickle_made_otherwise_than_the_yaml_says
        test_damaged_files_are_one_line
        test_other_constants_of_the_preconditioner
    """,
    "weights/test_full_size.py": "*",
    "weights/test_needed.py": """
        test_a_library_is_imported_only_for_its_own_models
    """,
    "weights/test_zoo.py": """
        test_a_file_that_does_not_fit
        test_a_file_without_named_tensors
        test_a_model_that_timm_does_not_have
        test_a_timm_file_that_is_not_on_the_hub
        test_an_imagenet_model_has_its_normalizer_in_front
        test_every_preset_of_adversarial_training_names_a_model_of_the_zoo
        test_models_that_are_not_there
        test_nothing_is_executed
        test_robustbench_files_of_the_layouts_it_reads
        test_robustbench_standard_is_our_wide_resnet
        test_the_file_names_carry_torchvisions_own_hashes
        test_timm_files_of_older_names
        test_timm_options_name_published_weights
        test_timm_preprocesses_once_and_as_published
        test_torchvisions_files_in_both_of_torchs_formats
    """,
}
FAST = (  # cases of slow functions that `make test-fast` runs nevertheless: the names begin with this
    "attacks/test_attacks.py::test_contract[pgd_eot-linf]",
    "audit/test_audit.py::test_command[checks0",
    "audit/test_audit_faults.py::test_a_planted_fault_is_found_by_the_check_named_for_it[a detached purifier]",
    "defense/test_gradients.py::test_full_gradient_equals_central_differences[diffpure]",
    "defense/test_gradients.py::test_recompute_equals_store_bit_for_bit[diffpure]",
    "docs/test_reference.py::test_generated_lists_are_up_to_date[reference]",
    "purifiers/test_purifiers.py::test_contract[hetero]",
    "runs/test_caveats.py::test_the_gradient_modes_of_an_attack[pgd_eot-full",
    "runs/test_configs.py::test_every_dataset_classifier_and_denoiser_binds[dataset-digits]",
    "runs/test_configs.py::test_every_option_composes_and_binds_for_every_dataset[purifier-hetero]",
    "runs/test_configs.py::test_every_preset_composes_narrows_and_says_its_command[table1/hetero]",
    "runs/test_keys.py::test_what_changes_rows_changes_the_key[dtype",
    "runs/test_protocols.py::test_a_protocol_sets_its_attack_and_its_gradient[strict]",
    "runs/test_run.py::test_a_users_error_is_one_line_and_code_2[overrides0",
    "runs/test_validate.py::test_check_call_names_the_key[purifier",
    "training/test_trainer.py::test_every_recipe_fits_its_signatures[digits_classifier]",
    "training/test_trainer.py::test_resume_is_exact[",
    "weights/test_full_size.py::test_counts[classifier-attribute_celebahq",
    "weights/test_full_size.py::test_counts[classifier-wrn_70_16]",
)
