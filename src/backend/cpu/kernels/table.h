// The kernels of a level, gathered: products of bf16 and of E4M3 are products of floats here. Included inside an
// anonymous namespace (see kernel_table.h).

constexpr KernelTable kTable{
    .products = {.multiply_integers = multiply_integers,
                 .multiply_neuron_codes = multiply_neuron_codes,
                 .add_neuron_codes = add_neuron_codes,
                 .multiply_add = {multiply_add_floats, multiply_add_floats, multiply_add_floats, multiply_add_bytes}},
    .matmul = matmul,
    .skip_floats = skip_floats,
    .multiply_neurons = multiply_neurons,
    .add_neurons = add_neurons,
    .quantize = quantize,
    .round_to_e4m3 = round_inputs_to_e4m3,
    .round_to_bf16 = round_inputs_to_bf16,
    .attend = attend,
    .rope_store = rope_store,
    .bound_keys = bound_keys,
    .score_pages = score_pages,
    .score_cells = score_cells,
    .weigh_cells = weigh_cells,
    .residual_norm = residual_norm,
    .activate = activate,
    .route = route,
    .accumulate = accumulate,
    .combine = combine,
    .scale_softcap = scale_softcap,
    .evaluate = evaluate,
    .read_memory = read_memory};
