// The kernels of a level, gathered. Included inside an anonymous namespace (see kernel_table.h).

constexpr KernelTable kTable{.matmul = matmul,
                             .quantize = quantize,
                             .round_to_e4m3 = round_inputs_to_e4m3,
                             .multiply_integers = multiply_integers,
                             .attend = attend,
                             .rope_store = rope_store,
                             .residual_norm = residual_norm,
                             .activate = activate,
                             .route = route,
                             .accumulate = accumulate,
                             .combine = combine,
                             .scale_softcap = scale_softcap,
                             .evaluate = evaluate,
                             .read_memory = read_memory,
                             .multiply_add = multiply_add};
