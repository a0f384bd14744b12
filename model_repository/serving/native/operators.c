/* The operators of domain "personaplex" for ONNX Runtime on a CPU, and how they are registered. */
#include "operators.h"

const Api *registered_api;

Status *constant(const Api *api, const KernelInfo *info, size_t index, size_t *elements, const void **data) {
    const Tensor *tensor;
    Shape *shape;
    int is_constant;
    TRY(constant_input(api, info, index, &is_constant, &tensor));
    if (!is_constant) return create_status(api, INVALID_ARGUMENT, "a matrix must be a constant");
    TRY(tensor_shape(api, tensor, &shape));
    Status *failed = element_count(api, shape, elements);
    release_shape(api, shape);
    return failed ? failed : tensor_data(api, tensor, (void **)data);
}

const char *on_cpu(const Op *op) { return (void)op, "CPUExecutionProvider"; }
int required(const Op *op, size_t index) { return (void)op, (void)index, REQUIRED; }
int default_memory(const Op *op, size_t index) { return (void)op, (void)index, 0; }
int none(const Op *op) { return (void)op, 0; }
int first_version(const Op *op) { return (void)op, 1; }
int last_version(const Op *op) { return (void)op, INT32_MAX; }

/* What ONNX Runtime calls when a session's options name this library. */
__attribute__((visibility("default"))) Status *RegisterCustomOps(SessionOptions *options, const ApiBase *base) {
    const Api *api = base->get_api(ABI_VERSION);
    OpDomain *domain;
    registered_api = api;
    TRY(create_domain(api, "personaplex", &domain));
    TRY(add_op(api, domain, &block_product));
    TRY(add_op(api, domain, &elu_convolution));
    TRY(add_op(api, domain, &elu_projection));
    return add_domain(api, options, domain);
}
