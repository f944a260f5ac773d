/* The communicators of device memory that a mesh may carry beside those of host memory. */
#ifndef HDI_COMM_MESH_H
#define HDI_COMM_MESH_H

#include <heddle/mesh.h>

typedef struct hdi_mesh_device {
    hd_comm *comms[HD_AXES];    /* of the axes, of the world at HD_AXIS_NONE; one may stand twice */
    void (*detach)(void *user); /* destroys them; called once, by hdi_mesh_detach */
    void *user;
} hdi_mesh_device;

/* The first axis that has the same ranks on this rank's line, `axis` itself if none before it has: one
 * communicator serves both. Local. */
hd_axis hdi_mesh_same_line(const hd_mesh *mesh, hd_axis axis);

/* Give a mesh that has none its device communicators; hd_mesh_destroy detaches. */
void hdi_mesh_attach(hd_mesh *mesh, const hdi_mesh_device *device);
void hdi_mesh_detach(hd_mesh *mesh);

#endif
