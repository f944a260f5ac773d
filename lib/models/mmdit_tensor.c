/* Rows around layers that the ranks of the tensor axis share: the image's are split over ranks between
 * layers, the text's, which are few, are the same on all. */
#include "models/mmdit.h"
#include "ops/tensor_axis.h"

hd_tensor hdi_mmdit_enter(hdi_mmdit_build *b, bool image, hd_tensor x)
{
    return image ? hdi_tensor_all_rows(b->p, x, b->stage->sequences, b->shared) : x;
}

hd_tensor hdi_mmdit_leave(hdi_mmdit_build *b, bool image, hd_tensor x)
{
    return image ? hdi_tensor_sum_rows(b->p, x, b->stage->sequences, b->shared)
                 : hdi_tensor_sum_alike(b->p, x);
}

/* `pass` for each stream of rows that have `image` rows of the image's. */
static hd_tensor pass_joined(hdi_mmdit_build *b, int64_t image_rows, hd_tensor x,
                             hd_tensor (*pass)(hdi_mmdit_build *b, bool image, hd_tensor x))
{
    if (hdi_tensor_ranks(b->p) == 1) return x;
    const int image = hdi_mmdit_image(b->config);
    int64_t tokens[] = {b->text, b->text};
    tokens[image] = image_rows;
    hd_tensor parts[2];
    hd_split_rows(b->p, x, b->stage->sequences, 2, tokens, parts);
    for (int s = 0; s < 2; s++)
        parts[s] = pass(b, s == image, parts[s]);
    return hd_join_rows(b->p, b->stage->sequences, 2, parts);
}

hd_tensor hdi_mmdit_enter_joined(hdi_mmdit_build *b, hd_tensor x)
{
    return pass_joined(b, b->own, x, hdi_mmdit_enter);
}

hd_tensor hdi_mmdit_leave_joined(hdi_mmdit_build *b, hd_tensor x)
{
    return pass_joined(b, b->shared, x, hdi_mmdit_leave);
}
