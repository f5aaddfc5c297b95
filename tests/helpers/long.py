"""The tests that `make test` leaves out and `make test-all` runs, by file: functions of which each takes seconds.

`make test` still runs the first case of a function that has several, and the cases that `slow.FAST` names. Everything
else that is here is a larger form of what a shorter test holds: every method where one is enough to see a mistake in
the shared code, a whole command where its parts are tested, a study on a small scale.
"""

LONG = {
    "attacks/test_diffattack.py": "test_gradient_equals_central_differences",
    "attacks/test_shards.py": "test_two_shards_give_the_rows_of_one_run",
    "attacks/test_square.py": "test_l2_nears_the_optimum",
    "attacks/test_union.py": "test_upstream_is_the_package",
    "audit/test_audit_authors.py": """
        test_an_identity_is_named_and_the_exact_gradient_finds_more
        test_mimics_own_gradient_is_zero_and_the_smoothed_sign_finds_more
        test_the_adjoint_of_ldsde_fails_on_digits
        test_the_honest_gradient_has_no_failure
    """,
    "audit/test_audit_faults.py": "test_of_a_sound_run_no_check_fails",
    "audit/test_audit_gradients.py": "test_every_attack_can_be_audited",
    "audit/test_audit_randomness.py": "test_no_kind_of_run_fails test_noise_levels_of_a_surrogate_of_fewer_rounds",
    "certification/test_certified.py": """
        test_rows_of_unknown_code_do_not_count
        test_the_bare_classifier_stands_beside_it
        test_what_changes_rows_changes_the_key_and_nothing_else_does
    """,
    "contracts/test_declared.py": "test_the_row_says_what_is_declared_and_how_it_is_attacked",
    "defense/test_diffusion_classifier.py": "test_the_gradient_equals_central_differences_and_needs_no_mode",
    "defense/test_gradients.py": """
        test_adjoint_mode_attacks_the_same_purification_with_another_gradient
        test_full_gradient_equals_central_differences
        test_recompute_equals_store_bit_for_bit
        test_straight_through_clamp_is_not_the_derivative
    """,
    "diffusion/test_checkpointing.py": "test_torchs_own_check_of_first_and_second_derivatives",
    "diffusion/test_two_moons.py": "test_restarts_reach_the_grids_optimum",
    "docs/test_embedded_figures.py": """
        test_the_bare_classifier_of_canvas_under_attack
        test_the_wide_classifier_of_digits_is_trained_by_its_recipe
    """,
    "docs/test_extending.py": """
        test_a_faulty_plug_in_fails_its_contract_in_sentences
        test_a_plug_in_is_found_in_the_working_folder
        test_an_example_runs_outside_the_tree
        test_what_is_outside_the_tree_passes_the_contract_tests
    """,
    "docs/test_performance.py": "test_the_hours_and_the_arithmetic_are_those_of_the_estimate",
    "docs/test_results_format.py": "test_the_script_finds_the_accuracies_of_the_summary",
    "docs/test_sanitizing.py": "test_a_folder_of_ones_own_is_sanitized_as_printed",
    "evaluation/test_budget.py": "test_every_attack_fits_the_budget_or_is_refused_in_a_line",
    "evaluation/test_slots.py": "test_rows_are_equal_with_and_without_refill",
    "evaluation/test_snapshot.py": "test_every_attack_goes_on_from_its_state",
    "evaluation/test_work.py": "test_the_time_to_go_is_right_from_the_first_line",
    "files/test_fetch.py": "test_the_list_has_plugins",
    "nets/test_parity_harness.py": "test_a_folder_outside_the_repository",
    "output/test_damaged.py": "test_sixty_damaged_folders",
    "output/test_tracking.py": "test_a_server_that_does_not_answer_costs_one_warning",
    "runs/test_bad_commands.py": "test_two_hundred_bad_command_lines",
    "runs/test_compile.py": """
        test_a_run_compiles_the_calls_of_its_attack
        test_a_second_derivative_is_refused_in_one_line
        test_the_real_compiler_gives_the_plain_values
        test_values_and_gradients_are_those_of_the_plain_network
    """,
    "runs/test_configs.py": """
        test_a_preset_of_another_defense_finds_the_figures_that_it_prints
        test_every_preset_composes_narrows_and_says_its_command
    """,
    "runs/test_cost.py": """
        test_the_cost_asks_no_cluster_and_says_whose_workers_it_means
        test_the_estimate_is_the_time_that_the_run_then_takes
    """,
    "runs/test_early.py": "test_every_purifier_runs_with_the_denoiser_of_its_dataset",
    "runs/test_engines.py": "test_two_gpus_share_one_queue_and_the_parent_keeps_no_weights",
    "runs/test_kills.py": "test_a_kill_loses_little_of_the_attack",
    "runs/test_own_dataset.py": "test_a_run_says_its_budget_and_which_values_of_a_protocol_it_scales",
    "runs/test_papers_command.py": """
        test_a_file_that_changes_after_its_first_use
        test_from_public_files_to_the_row
        test_the_official_checkpoint
    """,
    "runs/test_precision.py": "test_bfloat16_networks_lead_about_the_same_way",
    "runs/test_protocols.py": "test_the_table_row_tells_how_it_was_decided",
    "runs/test_ray.py": """
        test_a_killed_driver_and_a_killed_worker_change_no_row
        test_a_machine_joins_and_another_leaves
        test_a_stopped_driver_saves_the_states_of_its_workers
    """,
    "runs/test_run.py": """
        test_a_padded_batch_is_said
        test_a_run_that_was_told_to_stop_goes_on_with_its_attacks
        test_a_sweep_with_its_results_elsewhere
        test_eight_cells_make_eight_folders
        test_interrupt_says_what_is_saved_and_ends_with_130
        test_killed_at_random_moments_ends_with_the_same_bytes
    """,
    "runs/test_submitit.py": "test_a_preempted_job_goes_on_twice test_jobs_give_the_rows_of_one_process",
    "runs/test_sweep.py": "test_figure_7_on_digits_draws_its_curve_when_it_ends",
    "runs/test_workers.py": """
        test_a_run_of_many_units_ends_when_a_worker_fails
        test_a_state_that_does_not_fit_the_attack_is_not_used
        test_a_stopped_run_saves_its_state_and_goes_on
        test_what_goes_wrong_in_a_worker_is_raised
    """,
    "sanitizing/test_sanitize.py": """
        test_a_killed_process_goes_on_to_the_same_bytes
        test_every_poison_fits_every_dataset_with_recipes
        test_resume_after_every_chunk_and_every_saved_step_gives_the_same_bytes
        test_what_changes_the_result_changes_the_key
    """,
    "scripts/test_bench.py": "test_it_says_how_it_is_used",
    "scripts/test_cells.py": "test_a_run_by_seeds_is_the_run test_a_run_that_grows_is_the_run",
    "scripts/test_certified_study.py": "test_a_tiny_study_goes_on_and_writes_its_files",
    "scripts/test_claim.py": "test_calibration_uses_images_that_no_run_uses",
    "scripts/test_defenses.py": "test_the_runs_compose_and_none_is_made_twice",
    "scripts/test_noisy_gradients.py": "test_every_remedy_asks_for_as_many_gradients_as_the_plain_attack",
    "scripts/test_gpu.py": "test_the_whole_path_on_small_networks",
    "scripts/test_sanitizing_study.py": "test_a_tiny_study_goes_on_and_writes_its_files",
    "scripts/test_sweeps.py": "test_every_cell_composes_and_no_run_is_listed_twice_in_a_sweep",
    "training/test_assets.py": "test_standard_accuracy_under_uniform_purification",
    "training/test_trainer.py": """
        test_killed_and_started_again_it_ends_with_the_same_bytes
        test_the_network_of_a_purifier_is_trained
        test_two_processes_compute_what_one_does
    """,
    "weights/test_edm_pickle.py": "test_damaged_files_are_one_line",
    "weights/test_full_size.py": "test_every_network_that_a_yaml_names_is_counted",
}
L2 = "attacks/test_attacks.py::test_contract["  # its cases under l2 are long, too: every attack has those under linf
WHOLE = {  # functions of which `make test` runs no case: shorter tests hold the same
    "runs/test_kills.py::test_a_kill_loses_little_of_the_attack",
    "runs/test_run.py::test_a_run_that_was_told_to_stop_goes_on_with_its_attacks",
    "runs/test_run.py::test_a_sweep_with_its_results_elsewhere",
    "runs/test_workers.py::test_a_stopped_run_saves_its_state_and_goes_on",
}
